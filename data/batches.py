"""Tokens -> batches: training batches as a pure function of (seed, step), evaluation windows in a fixed order.

Shapes: N tokens of a split, B rows of a batch, T positions of the context. y_BT is x_BT one token later.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch


def train_batch(
    tokens_N: np.ndarray, seed: int, step: int, batch_size: int, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x_BT, y_BT), int64: windows that start anywhere in the split.

    They depend on (seed, step) alone, so that a resumed run sees the same batches. The split must be longer than the
    context.
    """
    # numpy mixes seed and step, so that neighbouring ones give unrelated windows.
    # The last window starts at N - context - 1, since y_BT is one token later.
    starts_B = np.random.default_rng([seed, step]).integers(len(tokens_N) - context, size=batch_size)
    positions_BT = starts_B[:, None] + np.arange(context)
    return _tensor(tokens_N[positions_BT]), _tensor(tokens_N[positions_BT + 1])


def eval_windows(tokens_N: np.ndarray, context: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (x_BT, y_BT), int64: consecutive windows in which every token but the first is a target exactly once.

    The last window may be shorter than the context, and is then a batch of its own.
    """
    n_targets = len(tokens_N) - 1
    n_full = n_targets - n_targets % context
    for start in range(0, n_full, batch_size * context):
        stop = min(start + batch_size * context, n_full)
        x_BT = _tensor(tokens_N[start:stop].reshape(-1, context))
        yield x_BT, _tensor(tokens_N[start + 1 : stop + 1].reshape(-1, context))
    if n_full < n_targets:
        yield _tensor(tokens_N[None, n_full:n_targets]), _tensor(tokens_N[None, n_full + 1 :])


def spread_windows(tokens_N: np.ndarray, context: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x_BT, y_BT), int64: whole windows of `eval_windows`, evenly spread over the split.

    There are as few as hold `n_tokens` together, or all where these are fewer. A split that is shorter than the context
    is one window.
    """
    context = min(context, len(tokens_N) - 1)
    n_windows = (len(tokens_N) - 1) // context
    count = min(math.ceil(n_tokens / context), n_windows)
    starts_B = np.arange(count) * n_windows // count * context
    positions_BT = starts_B[:, None] + np.arange(context)
    return _tensor(tokens_N[positions_BT]), _tensor(tokens_N[positions_BT + 1])


def _tensor(tokens: np.ndarray) -> torch.Tensor:
    # torch cannot embed the 16-bit ids of the files.
    return torch.from_numpy(tokens.astype(np.int64))
