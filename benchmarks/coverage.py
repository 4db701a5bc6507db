"""How often do the verdicts hold? Whole studies are simulated, with the project's own tuning, bracket and statistics.

    python benchmarks/coverage.py [studies, default 1000]

A run's loss depends on its learning rate as measured on small networks. It rises by 0.11 nats per octave² above the
best rate and by 0.02 below, with a noise of 0.02 from run to run. After
30 % of the budget the best rate is 0.7 octaves higher.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from rich.progress import track

from study.judge.statistics import (
    Effect,
    at_best_rate,
    lowest_three,
    outcome,
    pair,
    paired,
    pseudo_values,
)
from study.judge.verdicts import Finding, claim_verdicts
from study.plan.claims import Prediction
from study.plan.tuning import EXTENSIONS, MOVES, best_lr, beyond_bracket, bracket, extension

ABOVE, BELOW, NOISE, SHIFT = 0.11, 0.02, 0.02, 0.7  # see above
GRID = [2.0**octave for octave in range(-2, 3)]
GAP = 0.1  # true difference of the two arms, where coverage is counted
MARGIN = 0.02
CLAIMS, PREDICTIONS = 5, 3


@dataclass(frozen=True)
class World:
    """How steep the loss is over the learning rate, and by how many octaves a short run's best rate is higher."""

    steepness: float
    shift: float


class Arm:
    """An arm whose loss at its best rate is `floor`. The best rate lies within an octave of the grid's middle."""

    def __init__(self, world: World, floor: float, random: np.random.Generator):
        self.world, self.floor, self.random = world, floor, random
        self.best = random.uniform(-1, 1)

    def losses(self, rate: float, count: int, short: bool = False) -> list[float]:
        """Return the losses of that many runs, at the whole budget or at 30 % of it."""
        distance = np.log2(rate) - self.best - (self.world.shift if short else 0)
        curve = self.world.steepness * (ABOVE if distance > 0 else BELOW) * distance**2
        return [self.floor + curve + NOISE * self.random.standard_normal() for _ in range(count)]

    def tuned(self, seeds: int) -> float:
        """Return the best rate of the coarse grid at 30 % of the budget, which grows while it lies at an edge."""
        losses = {rate: self.losses(rate, seeds, short=True) for rate in GRID}
        for _ in range(EXTENSIONS):
            further = extension(list(losses), best_lr(losses) or 0)
            if further is not None:
                losses[further] = self.losses(further, seeds, short=True)
        return best_lr(losses) or 0


def bracketed(arm: Arm, n: int) -> dict[int, float] | None:
    """Return what the protocol finds for each of n seeds; None if the bracket did not settle."""
    middle = arm.tuned(seeds=2)
    losses = {rate: arm.losses(rate, n) for rate in bracket(middle, 3)}
    for _ in range(MOVES):
        further = beyond_bracket(list(losses), middle, best_lr(losses) or 0)
        if further is not None:
            losses[further] = arm.losses(further, n)
    table = {rate: dict(enumerate(values)) for rate, values in losses.items()}
    rates = lowest_three(table)
    if rates is None:
        return None
    around = {rate: table[rate] for rate in rates}
    return pseudo_values(lambda seeds: at_best_rate(around, around, seeds), range(n))


def fixed(arm: Arm, n: int) -> dict[int, float]:
    """Return what the first protocol found: three tuning seeds, then n fresh seeds at the rate that was best."""
    return dict(enumerate(arm.losses(arm.tuned(seeds=3), n)))


Protocol = Callable[[Arm, int], dict[int, float] | None]


def study(protocol: Protocol, world: World, n: int, gap: float, random: np.random.Generator) -> Effect | None:
    """Return the effect that a study of two arms finds, None if a bracket did not settle."""
    ours = protocol(Arm(world, gap, random), n)
    theirs = protocol(Arm(world, 0.0, random), n)
    return paired(pair(ours, theirs)) if ours and theirs else None


def progress(count: int) -> Iterable[int]:
    """Count from 0, with a bar on a terminal."""
    return track(range(count), transient=True, disable=not sys.stdout.isatty())


def coverage(studies: int) -> None:
    """Print how often the 95 % interval covers the true difference, under both protocols."""
    print(f"coverage of the 95 % interval, {studies} studies of two arms in each cell (width: the median)")
    print(f"{'steepness':>9} {'shift':>5} {'n':>3} {'bracket':>8} {'width':>6} {'unsettled':>9} {'first protocol':>15}")
    for steepness in (0.5, 1.0, 2.0):
        for shift in (0.0, SHIFT):
            for n in (5, 10):
                world, random = World(steepness, shift), np.random.default_rng(0)
                row = []
                for protocol in (bracketed, fixed):
                    effects = [study(protocol, world, n, GAP, random) for _ in progress(studies)]
                    settled = [effect for effect in effects if effect]
                    covered = fmean(effect.low <= GAP <= effect.high for effect in settled)
                    width = median(effect.high - effect.low for effect in settled)
                    row.append((covered, width, 1 - len(settled) / studies))
                (covered, width, unsettled), (before, _, _) = row
                print(
                    f"{steepness:9g} {shift:5g} {n:3d} {covered:8.3f} {width:6.3f} {unsettled:9.3f} {before:15.3f}",
                    flush=True,
                )


def contradictions(studies: int) -> None:
    """Print how often two repetitions of a study contradict each other: one supports what the other finds opposite."""
    world, random = World(1.0, SHIFT), np.random.default_rng(1)
    print(f"\ntwo repetitions, margin {MARGIN}, n = 5, {studies} pairs: outcomes of one, and pairs that contradict")
    for gap in (0.0, MARGIN / 2, MARGIN, 2 * MARGIN):
        counts: dict[str, int] = dict.fromkeys(("supported", "opposite", "no effect", "undecided"), 0)
        against = 0
        for _ in progress(studies):
            effects = [study(bracketed, world, 5, gap, random) for _ in range(2)]
            found = [outcome(effect, 1, MARGIN) if effect else "undecided" for effect in effects]
            counts[found[0]] += 1
            against += set(found) == {"supported", "opposite"}
        shares = ", ".join(f"{name} {count / studies:.3f}" for name, count in counts.items())
        print(f"true difference {gap:.2f}: {shares}; contradictions {against / studies:.4f}", flush=True)


def families(studies: int) -> None:
    """Print how often five claims of three predictions each have a verdict that is false."""
    world, random = World(1.0, SHIFT), np.random.default_rng(2)
    prediction = Prediction("the first arm ends above", "above", ({},), ({},), margin=MARGIN)

    def claim(gaps: list[float]) -> list[Finding]:
        return [Finding(prediction, study(bracketed, world, 5, gap, random)) for gap in gaps]

    print(f"\n{CLAIMS} claims of {PREDICTIONS} predictions, n = 5, {studies} families")
    for text, gaps, wrong in (
        ("false “supported”: every difference is 0", [0.0] * PREDICTIONS, "supported"),
        ("false “supported”: one of three is 0", [0.0, GAP, GAP], "supported"),
        ("false “refuted” of a claim: all at twice the margin", [2 * MARGIN] * PREDICTIONS, "refuted"),
    ):
        any_wrong, each_wrong = 0, 0
        for _ in progress(studies):
            verdicts = claim_verdicts([claim(gaps) for _ in range(CLAIMS)])
            any_wrong += wrong in verdicts
            each_wrong += verdicts.count(wrong)
        share = each_wrong / studies / CLAIMS
        print(f"{text}: {share:.4f} of the claims, {any_wrong / studies:.4f} of the families", flush=True)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    coverage(count)
    contradictions(count)
    families(max(count // 5, 1))
