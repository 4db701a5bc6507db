"""A study from its plan to its results: tuning where it is asked for, then the runs that count, on fresh seeds."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from errors import UserError
from files import write_file, write_folder, writing
from study.plan.config import Tree, flatten
from study.plan.engine import pick_engine
from study.plan.estimate import prepare_arms, size_lines
from study.plan.plan import Plan, make_plan
from study.plan.tuning import EXTENSIONS, best_lr, extension, tuning_runs
from study.run.processes import execute_processes, execute_stacked
from study.run.ray_engine import execute_ray, import_ray
from training.config import WHERE, RunConfig, differences, read_toml
from training.contents import intact_summary, read_config
from training.ddp import world_size
from training.folder import CHOOSE, OWN_FILES, as_written, has_begun, hold
from training.interrupt import Interrupt
from training.run import check_available, check_context

ENGINES = {"processes": execute_processes, "stacked": execute_stacked, "ray": execute_ray}
PLACE = WHERE | {"study.engine"}  # fields that may differ when a study is resumed

TrainAll = Callable[[dict[str, RunConfig], Path], list[str]]  # runs by name, their folder -> names of those that failed


def run_study(tree: Tree, folder: Path, plugin: Path | None = None) -> list[str]:
    """Train the study that a tree of sections describes, as `run_plan`."""
    return run_plan(make_plan(tree), folder, plugin)


def run_plan(plan: Plan, folder: Path, plugin: Path | None = None, beside: Sequence[Path] = ()) -> list[str]:
    """Train every run of a study that is not finished and return the names of those that failed.

    With a grid in `study.lr`, each arm is tuned first (runs in `folder/tune`), and its runs take the best rate. What to
    train next is always decided from what the folder holds, so a killed study goes on as if it never stopped. A run
    that a study in `beside` has finished already, of the same name and config, is copied from there.

    Raises:
        UserError: the folder holds another study, another process works on it, or this machine cannot train it.
        Interrupted: a signal came; every run has written a checkpoint.
    """
    runs = plan.runs
    if world_size() > 1:
        raise UserError(
            f"torchrun spreads one run, and this is a study of {len(runs)}: start it without torchrun. "
            "Over many machines: --study.engine=ray."
        )
    # A finished study needs no engine, device or corpus: its report can be written again without them.
    finished = all(intact_summary(folder / name) for name in runs)
    engine = "" if finished else pick_engine(plan.study.engine, runs.values())
    if not finished:
        for config in runs.values():
            check_available(config)
        if engine == "ray":
            import_ray()
    with _open_study(folder, plan.tree) as resumed:
        if finished:
            return []
        data = prepare_arms(plan)  # here, and not in every process
        for name, arm in plan.arms.items():
            check_context(arm.config, data[name])
        if not resumed:
            write_file(folder / "study.toml", tomli_w.dumps(plan.tree))
        print(*size_lines(plan, data), sep="\n", flush=True)
        with Interrupt() as interrupt:

            def train_all(some: dict[str, RunConfig], where: Path) -> list[str]:
                for other in beside:
                    _copy_finished(some, other / where.relative_to(folder), where)
                grouped = {name: _with_group(config, folder.name) for name, config in some.items()}
                return ENGINES[engine](grouped, where, plugin, interrupt)

            return _train_arms(plan, folder, train_all)


def _with_group(config: RunConfig, group: str) -> RunConfig:
    """Give a run its study's name as wandb group, unless its config sets one."""
    return dataclasses.replace(config, wandb=dataclasses.replace(config.wandb, group=config.wandb.group or group))


def _train_arms(plan: Plan, folder: Path, train_all: TrainAll) -> list[str]:
    """Tune the arms that ask for it, then train the runs that count; return the names of those that failed."""
    best = _tune(plan, folder / "tune", train_all)
    ready: dict[str, RunConfig] = {}
    for name, run in plan.runs.items():
        lr = best.get(plan.arm_of[name], run.train.lr)
        if lr is not None:
            ready[name] = dataclasses.replace(run, train=dataclasses.replace(run.train, lr=lr))
    untuned = [name for name in plan.runs if name not in ready]
    return untuned + (train_all(ready, folder) if ready else [])


def _tune(plan: Plan, folder: Path, train_all: TrainAll) -> dict[str, float | None]:
    """Return the best learning rate of each arm that is tuned, None if no rate finished on all of its seeds."""
    rates = {name: list(arm.study.lr) for name, arm in plan.arms.items() if arm.study.lr}
    best: dict[str, float | None] = {}
    tried: set[str] = set()
    for _ in range(EXTENSIONS + 1):
        trials = {name: tuning_runs(name, plan.arms[name], grid) for name, grid in rates.items()}
        # A run that diverged would diverge again, so each is trained once.
        fresh = {name: run for trial in trials.values() for name, run in trial.items() if name not in tried}
        if not fresh:
            break
        train_all(fresh, folder)
        tried |= fresh.keys()
        for name, trial in trials.items():
            best[name] = lr = best_lr(_losses(trial, folder))
            further = extension(rates[name], lr) if lr is not None else None
            if further is not None:
                rates[name].append(further)
    return best


def _losses(trial: dict[str, RunConfig], folder: Path) -> dict[float, list[float]]:
    """Return the final losses of tuning runs by learning rate, infinity for one that failed or diverged."""
    losses: dict[float, list[float]] = {}
    for name, run in trial.items():
        summary = intact_summary(folder / name)
        loss = summary["val/loss"] if summary and summary["status"] == "finished" else math.inf
        losses.setdefault(run.train.lr, []).append(loss)
    return losses


def _copy_finished(runs: dict[str, RunConfig], source: Path, folder: Path) -> None:
    """Copy the runs that another study's folder holds finished; in wandb they stay with that study."""
    copies = 0
    for name, config in runs.items():
        theirs = source / name
        if (folder / name).exists() or not intact_summary(theirs) or differences(read_config(theirs), config):
            continue
        folder.mkdir(exist_ok=True)
        size = sum(path.lstat().st_size for path in theirs.rglob("*"))
        with writing(folder, size), write_folder(folder / name) as copy:
            shutil.copytree(theirs, copy, ignore=shutil.ignore_patterns("wandb", ".lock"), dirs_exist_ok=True)
        copies += 1
    if copies:
        print(f"{copies} of {len(runs)} runs are copied from {source}, where they are finished", flush=True)


@contextmanager
def _open_study(folder: Path, tree: Tree) -> Iterator[bool]:
    """Hold the folder of a study; yields whether it holds runs of this study already."""
    path = folder / "study.toml"
    if folder.is_dir() and not path.exists() and {p.name for p in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a study (it has no study.toml). {CHOOSE}")
    with hold(folder):
        resumed = path.exists() and any(has_begun(config.parent) for config in folder.rglob("config.toml"))
        # Without runs, a study.toml is either of a study that was stopped early, or a plan that somebody wrote by hand.
        if not resumed and path.exists() and as_written(path) is None:
            raise UserError(f"{path} is not of a study, and the plan of this one would take its place. {CHOOSE}")
        if resumed:
            _check_same(flatten(read_toml(path)), flatten(tree), folder)
        yield resumed


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raise `UserError` if two plans differ in what is trained."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key not in PLACE and old.get(key) != new.get(key):
            lines.append(f"{key}: {old.get(key)!r} in the folder, {new.get(key)!r} asked for")
    if lines:
        raise UserError("\n  ".join([f"{folder} holds another study:", *lines, CHOOSE]))
