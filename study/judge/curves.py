"""What a curve says: tokens to a loss, the mean over training, the loss at a share of the budget, seconds to tokens."""

from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]  # (tokens, value) in order of tokens; the value is a loss in nats per token


def tokens_to(curve: Curve, target: float) -> float | None:
    """Return the tokens at which the loss first reaches the target, linear between evaluations; None if it never does.

    A curve that starts at or below the target gives its first tokens.
    """
    tokens, losses = _arrays(curve)
    reached = np.flatnonzero(losses <= target)
    if not reached.size:
        return None
    i = reached[0]
    if i == 0:
        return float(tokens[0])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


def area(curve: Curve, start: float | None = None) -> float:
    """Return the mean loss over training: the trapezoid area under the curve from `start` tokens on, by that range.

    Raises:
        ValueError: `start` lies before the curve's first tokens, or not before its last.
    """
    tokens, losses = _arrays(curve)
    first = tokens[0] if start is None else start
    if not tokens[0] <= first < tokens[-1]:
        raise ValueError(f"no area from {first:,.0f} on: the curve covers {tokens[0]:,.0f} to {tokens[-1]:,.0f}.")
    x = np.append(first, tokens[tokens > first])
    y = np.interp(x, tokens, losses)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def at_share(curve: Curve, share: float) -> float:
    """Return the loss at a share of the curve's last tokens (of a finished run: its budget), linear between points.

    Raises:
        ValueError: the share lies before the curve's first tokens, or above 1.
    """
    tokens, losses = _arrays(curve)
    at = share * tokens[-1]
    if not tokens[0] <= at <= tokens[-1]:
        raise ValueError(f"no loss at {at:,.0f} tokens: the curve covers {tokens[0]:,.0f} to {tokens[-1]:,.0f}.")
    return float(np.interp(at, tokens, losses))


def training_seconds(speeds: Curve, tokens: Sequence[float]) -> list[float]:
    """Return the seconds of training until each of these tokens, linear between the records of `speeds`.

    A speed is in tokens per second since the record before: `perf/tokens_per_s` of metrics.jsonl. So the seconds are
    those of training steps alone. The `time` of a record counts scores, probes and checkpoints too.
    """
    ends, speed = _arrays(speeds)
    seconds = np.cumsum(np.diff(ends, prepend=0) / speed)
    return np.interp(tokens, [0, *ends], [0, *seconds]).tolist()


def _arrays(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(curve, dtype=float)
    if not points.size or not np.isfinite(points).all() or (np.diff(points[:, 0]) <= 0).any():
        raise ValueError("a curve holds one finite (tokens, value) or more, in order of tokens, each once.")
    return points[:, 0], points[:, 1]
