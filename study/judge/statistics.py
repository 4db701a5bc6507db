"""Arms compared over paired seeds, as functions of tables: effects with intervals, brackets, outcomes, plans.

A difference is arm − reference in the unit of what was paired: nats per token for losses, and above 0 the arm is worse.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy.special import nctdtr, stdtr, stdtrit

Outcome = Literal["supported", "opposite", "no effect", "undecided"]  # of a claimed direction
Table = Mapping[float, Mapping[int, float]]  # learning rate -> seed -> a figure of that run

MINIMUM_SEEDS = 5  # of a verdict
MOST_SEEDS = 1000  # that a plan for a decision looks at
POWER = 0.8  # probability with which that plan decides
LEVEL = 0.05  # of a test, after adjustment


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


def pair(arm: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Return arm − reference for each seed, in order of the seeds.

    Raises:
        ValueError: a seed is missing on one side. To leave it out would be to choose seeds by their result.
    """
    if arm.keys() != reference.keys():
        raise ValueError(f"the seeds do not pair: {sorted(arm)} of the arm, {sorted(reference)} of the reference.")
    return [arm[seed] - reference[seed] for seed in sorted(arm)]


def paired(differences: Sequence[float]) -> Effect:
    """Return the mean of one or more differences, its interval and the p of Student's paired t test (1908).

    Differences that are all equal have an interval of no width and p = 0, or 1 if they are all 0.
    """
    values = [float(difference) for difference in differences]
    center, n = mean(values), len(values)
    if n == 1:
        return Effect(center, math.nan, math.nan, math.nan, n, math.nan)
    sd = stdev(values)  # exact: equal differences give 0 and no rounding noise
    error = sd / math.sqrt(n)
    half = t_quantile(n) * error
    p = 2 * float(stdtr(n - 1, -abs(center) / error)) if error else float(center == 0)
    return Effect(center, center - half, center + half, p, n, sd)


def t_quantile(n: int) -> float:
    """Return half the width of the 95 % interval of n differences, in standard errors: Student's t."""
    return float(stdtrit(n - 1, 0.975))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of a table adjusted for their number (Holm 1979, step-down), in the order given.

    Rejecting where they are below 5 % makes a false rejection anywhere in the table at most 5 % likely. A nan stays nan
    and does not count: where no test was made, none can reject falsely.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan sorts last
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()


def outcome(effect: Effect, direction: Literal[1, -1], margin: float, p: float | None = None) -> Outcome:
    """Return what an effect says of the claim that it lies in the direction (+1: above 0).

    - no effect: the whole interval lies within ± the margin, the smallest effect that matters.
    - supported: the interval excludes 0 in that direction, and the mean is at least the margin.
    - opposite: the interval excludes 0 in the other direction.
    - undecided: anything else, and always with fewer than `MINIMUM_SEEDS` seeds.

    Args:
        effect: the effect, in any unit.
        direction: +1 or -1.
        margin: above 0, in the effect's unit.
        p: an adjusted p, which has to be below 5 % for "supported" and "opposite"; by default the effect's own.
    """
    p = effect.p if p is None else p
    if effect.n < MINIMUM_SEEDS:
        return "undecided"
    # This comes first: an effect may differ from 0 for sure and still be too small to matter.
    if -margin < effect.low and effect.high < margin:
        return "no effect"
    if not p < LEVEL:  # nan where no test was made
        return "undecided"
    if direction * effect.mean < 0:
        return "opposite"
    return "supported" if direction * effect.mean >= margin else "undecided"


def p_refuted(effect: Effect, direction: Literal[1, -1], margin: float) -> float:
    """Return twice the one-sided p of the hypothesis that the effect reaches the margin in the claimed direction.

    Twice, so that it is below 5 % exactly where the 95 % interval excludes the margin. Both "opposite" and "no effect"
    imply that. A single seed has no spread to test with, and nan.
    """
    if effect.n < 2:
        return math.nan
    # The claim is refuted by how far the mean stays behind the margin, and not by how near it is to 0.
    error = effect.sd / math.sqrt(effect.n)
    distance = direction * effect.mean - margin
    if not error:
        return float(distance >= 0)
    return min(1.0, 2 * float(stdtr(effect.n - 1, distance / error)))


def power(difference: float, sd: float, n: int) -> float:
    """Return how likely the interval of n paired differences excludes 0 on the side of the true difference.

    The noncentral t distribution (Cohen, 1988).
    """
    return 1 - float(nctdtr(n - 1, math.sqrt(n) * abs(difference) / sd, t_quantile(n)))


def equivalence_power(difference: float, sd: float, n: int, margin: float) -> float:
    """Return about how likely the interval of n paired differences lies within ± the margin (Schuirmann, 1987).

    The normal approximation of Chow, Shao and Wang (2008), with t quantiles.
    """
    error = sd / math.sqrt(n)
    above = stdtr(n - 1, (margin - difference) / error - t_quantile(n))
    below = stdtr(n - 1, (margin + difference) / error - t_quantile(n))
    return max(0.0, float(above + below) - 1)


def seeds_to_decide(effect: Effect, margin: float) -> int | None:
    """Return how many seeds would probably decide, if the observed mean and spread were the true ones.

    That is the smallest n whose interval excludes 0 with a probability of 80 %; for a mean below the margin, lies
    within ± the margin. It is a plan for the next runs, and no evidence.

    Returns:
        None if no number up to `MOST_SEEDS` would, or where one seed shows no spread.
    """
    if effect.n < 2:
        return None
    if not effect.sd:  # all seeds agree, so that any number of them decides
        return MINIMUM_SEEDS
    # A mean below the margin can only be decided as too small, any other only as different from 0.
    for n in range(MINIMUM_SEEDS, MOST_SEEDS + 1):
        if abs(effect.mean) >= margin:
            likely = power(effect.mean, effect.sd, n)
        else:
            likely = equivalence_power(effect.mean, effect.sd, n, margin)
        if likely >= POWER:
            return n
    return None


def detectable(effect: Effect) -> float:
    """Return the smallest true difference that so many seeds find with a probability of 80 %, at the observed spread.

    It is nan for a single seed, and 0 where all seeds agree.
    """
    if effect.n < 2 or not effect.sd:
        return 0.0 if effect.n > 1 else math.nan
    # Power rises with the difference, so that bisection finds the place.
    low, high = 0.0, 1000 * effect.sd
    for _ in range(60):
        middle = (low + high) / 2
        if power(middle, effect.sd, effect.n) < POWER:
            low = middle
        else:
            high = middle
    return high


def lowest_three(losses: Table) -> list[float] | None:
    """Return the learning rate with the lowest mean loss between its two neighbours; None if it is at an edge.

    All rates have the same seeds.
    """
    rates = sorted(losses)
    means = [mean(losses[rate].values()) for rate in rates]
    lowest = means.index(min(means))
    return rates[lowest - 1 : lowest + 2] if 0 < lowest < len(rates) - 1 else None


def vertex(rates: Sequence[float], means: Sequence[float]) -> float:
    """Return the learning rate at which the parabola through three mean losses, over the log of the rate, is lowest.

    Where the parabola opens downward or is flat, the rate with the lowest mean stands in. The result lies between the
    outer rates: beyond them the parabola is a guess.
    """
    # Over the logarithm, the loss near its lowest point is about a parabola, and the rates are equally far apart.
    x = np.log2(rates)
    curvature, slope, _ = np.polyfit(x, means, 2)
    if curvature <= 1e-9:
        return rates[int(np.argmin(means))]
    return float(2 ** np.clip(-slope / (2 * curvature), x[0], x[2]))


def at_best_rate(losses: Table, figures: Table, seeds: Sequence[int]) -> float:
    """Return a figure at the best learning rate of these seeds, from the runs at three rates.

    The best rate is the `vertex` of the mean losses. There, the figure is read off the parabola through its own three
    means. Of the loss itself, that is the value at the vertex.
    """
    rates = sorted(losses)
    # The loss alone chooses the rate: a figure that chose its own would be biased towards good luck.
    best = vertex(rates, [mean(losses[rate][seed] for seed in seeds) for rate in rates])
    means = [mean(figures[rate][seed] for seed in seeds) for rate in rates]
    return float(np.polyval(np.polyfit(np.log2(rates), means, 2), math.log2(best)))


def pseudo_values(statistic: Callable[[Sequence[int]], float], seeds: Sequence[int]) -> dict[int, float]:
    """Return the jackknife's pseudo-value of each seed: n·θ − (n − 1)·θ without that seed (Tukey, 1958).

    Their mean estimates θ, and Student's t interval of that mean covers what the statistic itself chooses, such as a
    learning rate (Efron & Tibshirani, 1993, chapter 11). Pseudo-values of a mean are the values themselves. One seed
    has θ as its pseudo-value.
    """
    whole, n = statistic(seeds), len(seeds)
    # Leaving out the only seed would leave nothing.
    if n == 1:
        return {seeds[0]: whole}
    return {seed: n * whole - (n - 1) * statistic([other for other in seeds if other != seed]) for seed in seeds}


def block_bootstrap(window_losses: Sequence[float], block: int, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean loss over validation windows, in the order of the text.

    This is the noise of one evaluation and says nothing of other seeds. Neighbouring windows share a document, so
    blocks of them are resampled (Künsch 1989), on a circle so that each counts equally (Politis & Romano 1992).

    Args:
        window_losses: mean loss of each window (nats per token), all windows of one length. For the noise of a gap
            between two models: their differences, window by window.
        block: windows in a block, more than the correlation reaches; at most half of them.
        draws: number of resamples.
    """
    losses = np.asarray(window_losses, dtype=float)
    n, center = len(losses), losses.mean()
    generator = np.random.default_rng(0)  # the same report again shows the same noise
    total = np.append(0, np.cumsum(np.append(losses, losses) - center))  # twice round the circle
    means = np.full(draws, center)
    for length, blocks in ((block, n // block), (n % block, 1)):  # whole blocks, and a shorter one to fill n windows
        sums = total[length : length + n] - total[:n]
        means += sums[generator.integers(n, size=(draws, blocks))].sum(axis=1) / n
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
