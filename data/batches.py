"""Tokens -> batches: training batches as a pure function of (seed, step), evaluation windows in a fixed order.

Shapes: N tokens of a split, B rows of a batch, T positions of the context. y_BT is x_BT one token later.
"""

from collections.abc import Iterator

import numpy as np
import torch

from errors import UserError


def train_batch(
    tokens_N: np.ndarray, seed: int, step: int, batch_size: int, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x_BT, y_BT), int64: windows that start anywhere, drawn from (seed, step) and nothing else.

    Raises:
        UserError: the split is shorter than one window.
    """
    if len(tokens_N) <= context:
        raise UserError(
            f"a context of {context} tokens needs {context + 1}, but the training split has {len(tokens_N)}."
        )
    starts_B = np.random.default_rng([seed, step]).integers(len(tokens_N) - context, size=batch_size)
    positions_BT = starts_B[:, None] + np.arange(context)
    return _tensor(tokens_N[positions_BT]), _tensor(tokens_N[positions_BT + 1])


def eval_windows(tokens_N: np.ndarray, context: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (x_BT, y_BT), int64: consecutive windows in which every token but the first is a target exactly once.

    The last window may be shorter than the context: it is a batch of its own, as is the last incomplete batch.
    """
    n_targets = len(tokens_N) - 1
    n_even = n_targets - n_targets % context
    for start in range(0, n_even, batch_size * context):
        stop = min(start + batch_size * context, n_even)
        x_BT = _tensor(tokens_N[start:stop].reshape(-1, context))
        yield x_BT, _tensor(tokens_N[start + 1 : stop + 1].reshape(-1, context))
    if n_even < n_targets:
        yield _tensor(tokens_N[None, n_even:n_targets]), _tensor(tokens_N[None, n_even + 1 :])


def _tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))
