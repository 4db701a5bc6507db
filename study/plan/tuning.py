"""Each arm's own learning rate: a coarse grid on tuning seeds, then a narrow bracket on the seeds that count.

Both grow by one rate at a time while the best rate is at their edge.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from study.plan.grid import shorten
from study.plan.plan import PlannedArm
from training.config import RunConfig

EXTENSIONS = 2  # how often a grid may grow by one rate
MOVES = 3  # how often a bracket may move by one rate
BRACKET_RATIO = math.sqrt(2)  # between neighbouring rates of a bracket; at 2, a steep curve is missed
BARE = {"eval_every": -1, "probes": 0}  # in [train] of a tuning run: only its last loss is used


@dataclasses.dataclass(frozen=True)
class Left:
    """The runs of an arm that are not finished yet."""

    tuning: list[RunConfig]
    final: list[RunConfig]

    def __bool__(self) -> bool:
        return bool(self.tuning or self.final)


def shorter(arm: PlannedArm) -> RunConfig:
    """Return the config of an arm's tuning runs: a share of the budget, and nothing measured but the last loss."""
    # A part of the budget finds the best rate roughly. The bracket then looks around it at the whole budget.
    tokens = math.ceil(arm.study.tune_share * arm.config.train.tokens)
    return dataclasses.replace(arm.config, train=dataclasses.replace(arm.config.train, tokens=tokens, **BARE))


def runs_at(name: str, config: RunConfig, rates: Iterable[float], seeds: Iterable[int]) -> dict[str, RunConfig]:
    """Return the runs of an arm at each of the learning rates with each of the seeds, by name."""
    runs = {}
    for lr, seed in itertools.product(rates, seeds):
        train = dataclasses.replace(config.train, lr=lr, seed=seed)
        runs[shorten(f"{name}-lr{lr:g}-seed{seed}")] = dataclasses.replace(config, train=train)
    return runs


def bracket(middle: float, count: int) -> list[float]:
    """Return that many learning rates, a factor of √2 apart, around the middle one."""
    return [_bracket_rate(middle, place) for place in range(-(count // 2), count // 2 + 1)]


def beyond_bracket(rates: Sequence[float], middle: float, lowest: float) -> float | None:
    """Return the next rate of a bracket around `middle` if the one with the lowest loss is at its edge; else None."""
    place = round(math.log(lowest / middle, BRACKET_RATIO))
    # A bracket of one rate has no edge: its lowest and its highest rate cancel.
    step = (lowest == max(rates)) - (lowest == min(rates))
    return _bracket_rate(middle, place + step) if step else None


def _bracket_rate(middle: float, place: int) -> float:
    # Three digits, since the runs are named so. Each rate comes from the middle one: rounding does not add up.
    return float(f"{middle * BRACKET_RATIO**place:.3g}")


def best_lr(losses: Mapping[float, Sequence[float]]) -> float | None:
    """Return the learning rate of the lowest mean loss over the tuning seeds; None if no rate finished on all of them.

    `losses` holds infinity for a run that failed or diverged.
    """
    # One infinity makes a mean infinite: a rate at which some seed diverges is not the best.
    means = {lr: fmean(values) for lr, values in losses.items()}
    best = min(means, key=means.__getitem__)
    return best if math.isfinite(means[best]) else None


def extension(grid: Sequence[float], best: float) -> float | None:
    """Return the rate beyond the edge of the grid, at the grid's own ratio, if `best` is at that edge; else None."""
    rates = sorted(set(grid))
    if best == rates[-1]:
        return float(f"{best * best / rates[-2]:.3g}")
    if best == rates[0]:
        return float(f"{best * best / rates[1]:.3g}")
    return None
