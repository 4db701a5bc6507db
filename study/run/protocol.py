"""A study from its plan to its results: tuning where it is asked for, then the runs that count, on fresh seeds."""

import dataclasses
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from errors import UserError
from files import write_file, write_folder, writing
from study.plan.config import Tree
from study.plan.engine import pick_engine
from study.plan.estimate import prepare_arms, size_lines
from study.plan.metrics import check_metrics
from study.plan.plan import Plan, make_plan
from study.run.growth import grow
from study.run.processes import execute_processes, execute_stacked
from study.run.ray_engine import execute_ray, import_ray
from study.run.search import left_to_train, train_arms
from training.config import RunConfig, differences
from training.contents import intact_summary, read_config
from training.ddp import world_size
from training.folder import CHOOSE, OWN_FILES, hold
from training.interrupt import Interrupt
from training.limits import check_available, check_context, warn_of_repetition

ENGINES = {"processes": execute_processes, "stacked": execute_stacked, "ray": execute_ray}


def run_study(tree: Tree, folder: Path) -> list[str]:
    """Train the study that a tree of sections describes, as `run_plan`."""
    return run_plan(make_plan(tree), folder)


def run_plan(plan: Plan, folder: Path, beside: Sequence[Path] = ()) -> list[str]:
    """Train every run of a study that is not finished and return the names of those that failed.

    What to train next is always decided from what the folder holds (study/run/search.py), so a killed study goes on as
    if it never stopped, and a finished one takes more seeds or arms. A run that a study in `beside` has finished
    already, of the same name and config, is copied from there.

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
    finished = not any(left_to_train(plan, folder).values())
    engine = "" if finished else pick_engine(plan.study.engine, runs.values())
    if not finished:
        for config in runs.values():
            check_available(config)
        if engine == "ray":
            import_ray()
    with _open_study(folder, plan):
        if finished:
            return []
        data = prepare_arms(plan)  # here, and not in every process
        for name, arm in plan.arms.items():
            check_context(arm.config, data[name])
        warn_of_repetition(next(iter(plan.arms.values())).config, next(iter(data.values())))
        check_metrics(plan, data)
        print(*size_lines(plan, data), sep="\n", flush=True)
        with Interrupt() as interrupt:

            def train_all(some: dict[str, RunConfig], where: Path) -> list[str]:
                for other in beside:
                    _copy_finished(some, other / where.relative_to(folder), where)
                grouped = {name: _with_group(config, folder.name) for name, config in some.items()}
                return ENGINES[engine](grouped, where, interrupt)

            return train_arms(plan, folder, train_all)


def _with_group(config: RunConfig, group: str) -> RunConfig:
    """Give a run its study's name as wandb group, unless its config sets one."""
    return dataclasses.replace(config, wandb=dataclasses.replace(config.wandb, group=config.wandb.group or group))


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
def _open_study(folder: Path, plan: Plan) -> Iterator[None]:
    """Hold the folder of a study whose study.toml is this plan, or an earlier one that this plan contains."""
    path = folder / "study.toml"
    if folder.is_dir() and not path.exists() and {p.name for p in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a study (it has no study.toml). {CHOOSE}")
    with hold(folder):
        begun = path.exists() and any(folder.rglob("config.toml"))
        # Without runs, a study.toml is either of a study that was stopped early, or a plan that somebody wrote by hand.
        if not begun and path.exists() and _as_written(path) is None:
            raise UserError(f"{path} is not of a study, and the plan of this one would take its place. {CHOOSE}")
        if begun:
            grow(folder, plan)
        for config in folder.glob("*/config.toml"):
            read_config(config.parent)  # refuses a plugin that has changed since
        if _as_written(path) != plan.tree:
            write_file(path, tomli_w.dumps(plan.tree))
        yield


def _as_written(path: Path) -> Tree | None:
    """Return the tables of a TOML file whose text is as this project writes it, None of one that somebody wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
        return tables if tomli_w.dumps(tables) == text else None
    except (OSError, ValueError, RecursionError):
        return None
