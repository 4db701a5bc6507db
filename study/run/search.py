"""Which runs a study trains next: tuning first, then the learning rates around each arm's best, on every fresh seed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from study.plan.plan import Plan
from study.plan.tuning import (
    EXTENSIONS,
    MOVES,
    Left,
    best_lr,
    beyond_bracket,
    bracket,
    extension,
    runs_at,
    shorter,
)
from training.config import RunConfig
from training.contents import intact_summary

TrainAll = Callable[[dict[str, RunConfig], Path], list[str]]  # runs by name, their folder -> names of those that failed
Rates = dict[str, list[float]]  # learning rates by arm


@dataclass
class Search:
    """What a search over learning rates has found: all of its runs by arm and name, the best rates, failed runs.

    An arm of which no rate finished on all seeds has the best rate None.
    """

    runs: dict[str, dict[str, RunConfig]]
    best: dict[str, float | None]
    failed: list[str]

    def unfinished(self, arm: str, folder: Path) -> list[RunConfig]:
        """Return the runs of an arm that the folder does not hold finished."""
        return [run for name, run in self.runs.get(arm, {}).items() if not intact_summary(folder / name)]


def train_arms(plan: Plan, folder: Path, train_all: TrainAll) -> list[str]:
    """Train a study in its folder; return the names of the runs that failed, and of arms that could not be tuned."""
    tuning = _tune(plan, folder / "tune", train_all)
    untuned = [name for name, lr in tuning.best.items() if lr is None]
    middles = {name: lr for name, lr in tuning.best.items() if lr is not None}
    return untuned + _train_finals(plan, middles, folder, train_all).failed


def left_to_train(plan: Plan, folder: Path) -> dict[str, Left]:
    """Return what the folder of a study does not hold finished, by arm.

    A search that trains nothing finds what is left. A grid or a bracket that has to grow takes more. While an arm is
    not tuned, its bracket is counted around the middle of its grid.
    """

    def train_none(runs: dict[str, RunConfig], where: Path) -> list[str]:
        return []

    tuning = _tune(plan, folder / "tune", train_none)
    to_tune = {name: tuning.unfinished(name, folder / "tune") for name in plan.arms}
    middles = {}
    for name, lr in tuning.best.items():
        grid = sorted(plan.arms[name].study.lr)
        middles[name] = grid[len(grid) // 2] if lr is None or to_tune[name] else lr
    finals = _train_finals(plan, middles, folder, train_none)
    return {name: Left(to_tune[name], finals.unfinished(name, folder)) for name in plan.arms}


def _tune(plan: Plan, folder: Path, train_all: TrainAll) -> Search:
    """Train the coarse grid of each arm that is tuned."""

    def runs_of(name: str, rates: list[float]) -> dict[str, RunConfig]:
        return runs_at(name, shorter(plan.arms[name]), rates, plan.arms[name].study.tune_seeds)

    def beyond(name: str, rates: list[float], best: float) -> float | None:
        return extension(rates, best)

    grids = {name: list(arm.study.lr) for name, arm in plan.arms.items() if arm.study.lr}
    return _search(grids, runs_of, beyond, EXTENSIONS, folder, train_all)


def _train_finals(plan: Plan, middles: Mapping[str, float], folder: Path, train_all: TrainAll) -> Search:
    """Train the runs that count; tuned arms train around their middle rate."""
    rates: Rates = {}
    for name, arm in plan.arms.items():
        if name in middles:
            rates[name] = bracket(middles[name], arm.study.bracket)
        elif not arm.study.lr:
            rates[name] = [arm.config.train.lr]

    def runs_of(name: str, rates: list[float]) -> dict[str, RunConfig]:
        arm = plan.arms[name]
        if name not in middles:
            return arm.runs
        return runs_at(name, arm.config, rates, [run.train.seed for run in arm.runs.values()])

    def beyond(name: str, rates: list[float], best: float) -> float | None:
        return beyond_bracket(rates, middles[name], best) if name in middles else None

    return _search(rates, runs_of, beyond, MOVES, folder, train_all)


def _search(
    rates: Rates,
    runs_of: Callable[[str, list[float]], dict[str, RunConfig]],
    beyond: Callable[[str, list[float], float], float | None],
    moves: int,
    folder: Path,
    train_all: TrainAll,
) -> Search:
    """Train each arm at its rates, then at most `moves` times at the one that `beyond` names for its best so far."""
    search = Search({}, {}, [])
    tried: set[str] = set()
    for _ in range(moves + 1):
        search.runs = {name: runs_of(name, of_arm) for name, of_arm in rates.items()}
        # A run that diverged would diverge again, so each is trained once.
        fresh = {}
        for of_arm in search.runs.values():
            fresh |= {name: run for name, run in of_arm.items() if name not in tried}
        if not fresh:
            break
        search.failed += train_all(fresh, folder)
        tried |= fresh.keys()
        for name, of_arm in search.runs.items():
            search.best[name] = lowest = best_lr(_losses(of_arm, folder))
            further = beyond(name, rates[name], lowest) if lowest is not None else None
            if further is not None:
                rates[name].append(further)
    return search


def _losses(runs: Mapping[str, RunConfig], folder: Path) -> dict[float, list[float]]:
    """Return the final losses of runs by learning rate, infinity for one that failed or diverged."""
    losses: dict[float, list[float]] = {}
    for name, run in runs.items():
        summary = intact_summary(folder / name)
        loss = summary["val/loss"] if summary and summary["status"] == "finished" else math.inf
        losses.setdefault(run.train.lr, []).append(loss)
    return losses
