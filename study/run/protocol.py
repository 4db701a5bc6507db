"""A study from its config to its results: tuning where it is asked for, then the runs that count, on fresh seeds."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from data.dataset import prepare
from errors import UserError
from files import write_file, writing
from study.plan.config import Tree
from study.plan.grid import expand, study_config
from study.plan.tuning import EXTENSIONS, arm_of, arms, best_lr, extension, tuning_runs
from study.run.display import match
from study.run.executor import execute, execute_stacked
from study.run.ray_engine import execute_ray, package
from training.config import WHERE, RunConfig, differences, read_toml
from training.ddp import world_size
from training.device import pick_device
from training.folder import (
    CHOOSE,
    OWN_FILES,
    as_written,
    has_begun,
    hold,
    read_run_config,
    read_summary,
)
from training.interrupt import Interrupt
from training.run import check_available, check_context

ENGINES = {"processes": execute, "stacked": execute_stacked, "ray": execute_ray}
COPYING = ".copying"  # a run that is being taken over
PLACE = WHERE | {"study.engine"}  # may differ when a study is resumed


def pick_engine(name: str, runs: Collection[RunConfig]) -> str:
    """Return the engine of that name; `auto` stacks on a GPU, which waits for the kernels of a small run alone.

    Raises:
        UserError: runs that are to be compiled are to be stacked.
    """
    compiled = any(run.train.compile for run in runs)
    if name == "stacked" and compiled:
        raise UserError("train.compile = true does not go with stacked runs. Give --study.engine=processes.")
    if name != "auto":
        return name
    on_gpu = all(pick_device(run.train.device).type == "cuda" for run in runs)
    return "stacked" if on_gpu and not compiled else "processes"


def run_study(
    tree: Tree, folder: Path, plugin: Path | None = None, source: str = "the study", beside: Sequence[Path] = ()
) -> list[str]:
    """Train every run of a study that is not finished and return the names of those that failed.

    With a grid in `study.lr`, each arm is tuned first (runs in `folder/tune`), and its runs take the best rate. All
    that decides what is trained next is read from the folder, so that a killed study goes on as if it never stopped.
    A run that a study in `beside` has finished already, of the same name and config, is copied from there.

    Raises:
        UserError: the config is not allowed, the folder holds another study, or another process works on it.
        Interrupted: a signal came; every run has written a checkpoint.
    """
    study = study_config(tree, source)
    runs = expand(tree, source)
    if world_size() > 1:
        raise UserError(
            f"torchrun spreads one run, and this is a study of {len(runs)}: start it without torchrun. "
            "Over many machines: --study.engine=ray."
        )
    finished = all(read_summary(folder / name) for name in runs)
    engine = "" if finished else pick_engine(study.engine, runs.values())
    if not finished:
        for config in runs.values():
            check_available(config)
        if study.engine == "ray":
            package()
    with _open_study(folder, tree) as begun:
        if finished:
            return []
        data = {config: prepare(config) for config in {run.data for run in runs.values()}}  # not in every process
        for run in runs.values():
            check_context(run, data[run.data])
        if not begun:
            write_file(folder / "study.toml", tomli_w.dumps(tree))
        print(*match((run.model, data[run.data].tokenizer.n_vocab) for run in runs.values()), sep="\n", flush=True)
        with Interrupt() as interrupt:

            def train_all(runs: dict[str, RunConfig], where: Path) -> list[str]:
                for other in beside:
                    _take_over(runs, where, other / where.relative_to(folder))
                return ENGINES[engine](runs, where, folder.name, plugin, interrupt)

            return _stages(runs, tree, folder, source, train_all)


def _stages(
    runs: dict[str, RunConfig],
    tree: Tree,
    folder: Path,
    source: str,
    train_all: Callable[[dict[str, RunConfig], Path], list[str]],
) -> list[str]:
    """Tune the arms that have a grid of learning rates, then train the runs that count; return those that failed."""
    compared = arms(tree, source)
    rates = {arm: study.lr for arm, (_, study) in compared.items() if study.lr}
    best: dict[str, float | None] = {}
    tuned: set[str] = set()
    for extended in range(EXTENSIONS + 1):
        trials = {arm: tuning_runs(arm, *compared[arm], tried) for arm, tried in rates.items()}
        if not trials:
            break
        fresh = {name: run for trial in trials.values() for name, (_, run) in trial.items() if name not in tuned}
        if fresh:
            train_all(fresh, folder / "tune")
        tuned |= fresh.keys()  # one that diverged would diverge again
        best = {arm: best_lr(_losses(trial, folder / "tune")) for arm, trial in trials.items()}
        more = {arm: extension(rates[arm], lr) for arm, lr in best.items() if lr is not None}
        if extended == EXTENSIONS or not any(more.values()):
            break
        rates = {arm: (*tried, *filter(None, [more.get(arm)])) for arm, tried in rates.items()}
    ready: dict[str, RunConfig] = {}
    for name, run in runs.items():
        arm = arm_of(run, compared)
        lr = best.get(arm, run.train.lr)
        if lr is not None:
            ready[name] = dataclasses.replace(run, train=dataclasses.replace(run.train, lr=lr))
    return [name for name in runs if name not in ready] + (train_all(ready, folder) if ready else [])


def _take_over(runs: dict[str, RunConfig], folder: Path, other: Path) -> None:
    """Copy the runs that stand finished in another study's folder; to wandb they remain that one's."""
    taken, copy = 0, folder / COPYING
    shutil.rmtree(copy, ignore_errors=True)  # of a process that died while copying
    for name, config in runs.items():
        found = other / name
        if (folder / name).exists() or not read_summary(found) or differences(read_run_config(found), config):
            continue
        with writing(folder, sum(path.lstat().st_size for path in found.rglob("*"))):
            shutil.copytree(found, copy, ignore=shutil.ignore_patterns("wandb", ".lock"))
            copy.rename(folder / name)
        taken += 1
    if taken:
        print(f"{taken} of {len(runs)} runs are copied from {other}, where they stand finished", flush=True)


def _losses(trial: dict[str, tuple[float, RunConfig]], folder: Path) -> dict[float, list[float]]:
    losses: dict[float, list[float]] = {}
    for name, (lr, _) in trial.items():
        loss = (read_summary(folder / name) or {}).get("val/loss", math.inf)
        losses.setdefault(lr, []).append(loss if math.isfinite(loss) else math.inf)
    return losses


@contextmanager
def _open_study(folder: Path, tree: Tree) -> Iterator[bool]:
    """Hold the folder of a study; yields whether it holds runs of this study already."""
    path = folder / "study.toml"
    if folder.is_dir() and not path.exists() and {p.name for p in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a study (it has no study.toml). {CHOOSE}")
    with hold(folder):
        begun = path.exists() and any(has_begun(config.parent) for config in folder.rglob("config.toml"))
        if not begun and path.exists() and as_written(path) is None:
            raise UserError(f"{path} is not of a study, and the plan of this one would take its place. {CHOOSE}")
        old = read_toml(path) if begun else tree
        flat = [{f"{s}.{key}": value for s, part in t.items() for key, value in _entries(part)} for t in (old, tree)]
        pairs = [(key, flat[0].get(key), flat[1].get(key)) for key in sorted(flat[0].keys() | flat[1].keys())]
        unequal = [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in PLACE]
        if unequal:
            lines = [f"{key}: {a!r} in the folder, {b!r} asked for" for key, a, b in unequal]
            raise UserError("\n  ".join([f"{folder} holds another study:", *lines, CHOOSE]))
        yield begun


def _entries(part: dict[str, Any] | list[Any]) -> list[tuple[str, Any]]:
    """The keys of a section; of a list of tables, their numbers."""
    return list(part.items()) if isinstance(part, dict) else [(str(i), value) for i, value in enumerate(part, 1)]
