"""Each arm's own learning rate: a grid on tuning seeds, extended where the best lies at its edge."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from study.plan.config import StudyConfig, Tree
from study.plan.grid import planned, shortened
from training.config import RunConfig, TrainConfig

EXTENSIONS = 2  # at most so many times
BARE = {"eval_every": 0, "probes": 0}  # in [train] of a tuning run, since its last loss alone decides


def arms(tree: Tree, source: str) -> dict[str, tuple[RunConfig, StudyConfig]]:
    """Return what is compared, by name: the runs of a tree without their seeds, and how each is tuned."""
    seedless = [_without_seed(grid) for grid in tree.get("grid", [])]
    return planned(_without_seed(tree) | ({"grid": seedless} if seedless else {}), source)


def _without_seed(tree: Tree) -> Tree:
    return tree | {"train": {key: value for key, value in tree.get("train", {}).items() if key != "seed"}}


def arm_of(run: RunConfig, among: Mapping[str, tuple[RunConfig, StudyConfig]]) -> str:
    """Return the name of the arm that a run belongs to: all but its seed is equal."""
    seedless = dataclasses.replace(run, train=dataclasses.replace(run.train, seed=TrainConfig.seed))
    return next(name for name, (arm, _) in among.items() if arm == seedless)


def tuning_runs(
    arm: str, config: RunConfig, study: StudyConfig, rates: Sequence[float]
) -> dict[str, tuple[float, RunConfig]]:
    """Return the tuning runs of an arm by name, each with its learning rate: a share of the budget, its own seeds."""
    tokens = math.ceil(study.tune_share * config.train.tokens)
    bare = dataclasses.replace(config.train, tokens=tokens, **BARE)
    return {
        shortened(f"{arm}-lr{lr:g}-seed{seed}"): (
            lr,
            dataclasses.replace(config, train=dataclasses.replace(bare, lr=lr, seed=seed)),
        )
        for lr in rates
        for seed in study.tune_seeds
    }


def best_lr(losses: Mapping[float, Sequence[float]]) -> float | None:
    """Return the learning rate of the lowest mean loss over the tuning seeds; None if no rate finished on all of them.

    `losses` holds infinity for a run that failed or diverged.
    """
    means = {lr: fmean(values) for lr, values in losses.items()}
    best = min(means, key=means.__getitem__)
    return best if math.isfinite(means[best]) else None


def extension(grid: Sequence[float], best: float) -> float | None:
    """Return the learning rate beyond the edge that `best` lies at, at the grid's own ratio; None inside the grid."""
    low, *_, high = ordered = sorted(set(grid))
    if best == high:
        return float(f"{high * high / ordered[-2]:.3g}")
    if best == low:
        return float(f"{low * low / ordered[1]:.3g}")
    return None
