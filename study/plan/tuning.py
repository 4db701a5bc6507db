"""Each arm's own learning rate: a grid on tuning seeds, extended where the best rate is at its edge."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from study.plan.grid import shorten
from study.plan.plan import PlannedArm
from training.config import RunConfig

EXTENSIONS = 2  # how often a grid may grow by one rate
BARE = {"eval_every": 0, "probes": 0}  # in [train] of a tuning run: only its last loss is used


def tuning_runs(name: str, arm: PlannedArm, rates: Sequence[float]) -> dict[str, RunConfig]:
    """Return the tuning runs of an arm by name: a share of the budget, each rate with each of the tuning seeds."""
    tokens = math.ceil(arm.study.tune_share * arm.config.train.tokens)
    runs = {}
    for lr in rates:
        for seed in arm.study.tune_seeds:
            train = dataclasses.replace(arm.config.train, tokens=tokens, lr=lr, seed=seed, **BARE)
            runs[shorten(f"{name}-lr{lr:g}-seed{seed}")] = dataclasses.replace(arm.config, train=train)
    return runs


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
