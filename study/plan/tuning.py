"""Each arm's own learning rate: a coarse grid on tuning seeds, then a narrow bracket on the seeds that count.

Both grow by one rate at a time while the best rate is at their edge.
"""

import dataclasses
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


def tuning_runs(name: str, arm: PlannedArm, rates: Sequence[float]) -> dict[str, RunConfig]:
    """Return the tuning runs of an arm by name: a share of the budget, each rate with each of the tuning seeds."""
    tokens = math.ceil(arm.study.tune_share * arm.config.train.tokens)
    runs = {}
    for lr in rates:
        for seed in arm.study.tune_seeds:
            train = dataclasses.replace(arm.config.train, tokens=tokens, lr=lr, seed=seed, **BARE)
            runs[_name(name, lr, seed)] = dataclasses.replace(arm.config, train=train)
    return runs


def bracket(middle: float, count: int) -> list[float]:
    """Return that many learning rates, a factor of √2 apart, around the middle one."""
    return [_bracket_rate(middle, place) for place in range(-(count // 2), count // 2 + 1)]


def beyond_bracket(rates: Sequence[float], middle: float, lowest: float) -> float | None:
    """Return the next rate of a bracket around `middle` if the one with the lowest loss is at its edge; else None."""
    place = round(math.log(lowest / middle, BRACKET_RATIO))
    if lowest == max(rates):
        return _bracket_rate(middle, place + 1)
    return _bracket_rate(middle, place - 1) if lowest == min(rates) else None


def _bracket_rate(middle: float, place: int) -> float:
    # Three digits, since the runs are named so. Each rate comes from the middle one: rounding does not add up.
    return float(f"{middle * BRACKET_RATIO**place:.3g}")


def bracket_runs(name: str, arm: PlannedArm, rates: Sequence[float], seeds: Iterable[int]) -> dict[str, RunConfig]:
    """Return the runs of a tuned arm that count, by name: the whole budget, each rate with each of the seeds."""
    runs = {}
    for lr in rates:
        for seed in seeds:
            train = dataclasses.replace(arm.config.train, lr=lr, seed=seed)
            runs[_name(name, lr, seed)] = dataclasses.replace(arm.config, train=train)
    return runs


def _name(arm: str, lr: float, seed: int) -> str:
    return shorten(f"{arm}-lr{lr:g}-seed{seed}")


def best_lr(losses: Mapping[float, Sequence[float]]) -> float | None:
    """Return the learning rate of the lowest mean loss over the tuning seeds; None if no rate finished on all of them.

    `losses` holds infinity for a run that failed or diverged.
    """
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
