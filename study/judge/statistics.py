"""Arms compared over paired seeds: effects, intervals and verdicts; evaluation noise; what a loss curve says.

A difference is arm − reference in the unit of what was paired: nats per token for losses, and above 0 the arm is worse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from study.plan.config import SMALLEST

Verdict = Literal["supported", "refuted", "not shown"]
Curve = Sequence[tuple[float, float]]  # (tokens, loss in nats per token), in order of tokens

MINIMUM_SEEDS = 5  # of a verdict


@dataclass(frozen=True)
class Effect:
    """A mean of n paired differences with its t interval and two-sided p, in the unit of the differences.

    `sd` is the sample's standard deviation. One difference has no interval: `low`, `high`, `p` and `sd` are then nan.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    level: float = 0.95


def pair(arm: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Return arm − reference for each seed, in order of the seeds.

    Raises:
        ValueError: a seed is missing on one side, or has no finite difference (a run that diverged, say). To leave it
            out would be to choose seeds by their result.
    """
    if arm.keys() != reference.keys():
        raise ValueError(f"the seeds do not pair: {sorted(arm)} of the arm, {sorted(reference)} of the reference.")
    differences = {seed: arm[seed] - reference[seed] for seed in sorted(arm)}
    if bad := [seed for seed, difference in differences.items() if not math.isfinite(difference)]:
        raise ValueError(f"a pair of losses has no finite difference: seeds {bad}.")
    return list(differences.values())


def paired(differences: Sequence[float], level: float = 0.95) -> Effect:
    """Return the mean difference, its interval and the p of Student's paired t test (1908).

    Differences that are all equal have an interval of no width and p = 0, or 1 if they are all 0.

    Raises:
        ValueError: no difference, one that is not finite, or a level outside (0, 1).
    """
    values = [float(difference) for difference in differences]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"an effect needs one finite difference or more, not {values}.")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not {level}.")
    center, n = mean(values), len(values)
    if n == 1:
        return Effect(center, math.nan, math.nan, math.nan, n, math.nan, level)
    sd = stdev(values)  # exact: equal differences give 0 and no rounding noise
    error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(center) / error)) if error else float(center == 0)
    return Effect(center, center - half, center + half, p, n, sd, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of a table adjusted for their number (Holm 1979, step-down), in the order given.

    Rejecting where they are below 5 % makes a false rejection anywhere in the table at most 5 % likely. A nan stays nan
    and does not count: where no test was made, none can reject falsely.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p values lie between 0 and 1, not {list(p_values)}.")
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan sorts last
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()


def verdict(
    effect: Effect,
    direction: Literal[1, -1],
    p_holm: float,
    smallest: float = SMALLEST,
    minimum_seeds: int = MINIMUM_SEEDS,
) -> tuple[Verdict, str]:
    """Return the verdict on the claim that the effect lies in the direction (+1: above 0), and the reason.

    - supported: the interval excludes 0 in that direction, `p_holm` is below 1 − level, and the mean is at least the
      `smallest` effect that matters (in the effect's unit).
    - refuted: the whole interval lies below the smallest effect in that direction.
    - not shown: anything else, and always with fewer seeds than `minimum_seeds`.

    `p_holm` keeps the chance of any false "supported" in a table within 1 − level; the intervals alone would not.
    "refuted" is decided for each claim by itself: wrongly for up to (1 − level)/2 of those true at the smallest effect.

    Raises:
        ValueError: the direction is neither +1 nor −1.
    """
    if direction not in (1, -1):
        raise ValueError(f"the direction of a claim is +1 or -1, not {direction!r}.")
    if effect.n < minimum_seeds:
        return "not shown", f"a verdict needs {minimum_seeds} seeds or more, not {effect.n}"
    near, far = sorted((direction * effect.low, direction * effect.high))
    interval = f"{100 * effect.level:g} % interval [{effect.low:+.4f}, {effect.high:+.4f}]"
    if far < smallest:
        side = "below" if direction > 0 else "above"
        return "refuted", f"the whole {interval} lies {side} {direction * smallest:+g} (n = {effect.n})"
    if not near > 0:
        return "not shown", f"the {interval} does not exclude 0 in the claimed direction (n = {effect.n})"
    if not 1 - p_holm > effect.level:
        return "not shown", f"the {interval} excludes 0, but not after Holm: p = {p_holm:.2g} (n = {effect.n})"
    size = f"the mean {effect.mean:+.4f}"
    if direction * effect.mean < smallest:
        return "not shown", f"{size} falls short of {direction * smallest:+g}, but its {interval} reaches it"
    return "supported", f"{size} has the {interval}, Holm-adjusted p = {p_holm:.2g} (n = {effect.n})"


def block_bootstrap(window_losses: Sequence[float], block: int, draws: int, seed: int) -> tuple[float, float, float]:
    """Return the standard error of the mean loss over validation windows, and its 95 % percentile interval.

    This is the noise of one evaluation and says nothing of other seeds. Neighbouring windows share a document, so
    blocks of them are resampled (Künsch 1989), on a circle so that each counts equally (Politis & Romano 1992).

    Args:
        window_losses: mean loss of each window (nats per token) in the order of the text, all windows of one length.
            For the noise of a gap between two models: their differences, window by window.
        block: windows in a block, more than the correlation reaches.
        draws: number of resamples.
        seed: seed of the bootstrap's own generator.

    Raises:
        ValueError: a loss is not finite, there are fewer than two whole blocks, or fewer than two draws.
    """
    losses = np.asarray(window_losses, dtype=float)
    n = len(losses)
    if not np.isfinite(losses).all() or not 1 <= block <= n // 2 or draws < 2:
        raise ValueError(
            "a block bootstrap needs finite losses, two blocks or more and two draws or more, not "
            f"{np.isfinite(losses).sum()} finite losses of {n}, a block of {block} and {draws} draws."
        )
    generator, center = np.random.default_rng(seed), losses.mean()
    total = np.append(0, np.cumsum(np.append(losses, losses) - center))  # twice round the circle
    means = np.full(draws, center)
    for length, blocks in ((block, n // block), (n % block, 1)):  # whole blocks, and a shorter one to fill n windows
        sums = total[length : length + n] - total[:n]
        means += sums[generator.integers(n, size=(draws, blocks))].sum(axis=1) / n
    low, high = np.quantile(means, (0.025, 0.975))
    return float(means.std(ddof=1)), float(low), float(high)


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


def _arrays(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(curve, dtype=float)
    if not points.size or not np.isfinite(points).all() or (np.diff(points[:, 0]) <= 0).any():
        raise ValueError("a curve holds one finite (tokens, loss) or more, in order of tokens, each once.")
    return points[:, 0], points[:, 1]
