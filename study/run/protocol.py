"""A study from its plan to its results: tuning where it is asked for, then the runs that count, on fresh seeds."""

import dataclasses
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w

from errors import UserError
from files import write_file, write_folder, writing
from study.plan.config import Tree
from study.plan.engine import pick_engine
from study.plan.estimate import prepare_arms, size_lines
from study.plan.metrics import check_metrics
from study.plan.plan import Plan, make_plan
from study.run.executor import execute
from study.run.growth import grow
from study.run.ray_engine import import_ray
from study.run.search import left_to_train, train_arms
from study.run.workers import StudyLock, claimed, forget_failures
from training.config import RunConfig, differences
from training.contents import intact_summary, read_config
from training.ddp import world_size
from training.folder import CHOOSE, OWN_FILES
from training.interrupt import Interrupt
from training.limits import check_available, check_context, warn_of_repetition


def run_study(tree: Tree, folder: Path) -> list[str]:
    """Train the study that a tree of sections describes, as `run_plan`."""
    return run_plan(make_plan(tree), folder)


def run_plan(plan: Plan, folder: Path, beside: Sequence[Path] = ()) -> list[str]:
    """Train every run of a study that is not finished and return the names of those that failed.

    What to train next is always decided from what the folder holds (study/run/search.py), so a killed study goes on as
    if it never stopped, and a finished one takes more seeds or arms. For the same reason several processes may call
    this for one study (study/run/workers.py); each returns when all runs have ended. A run that a study in `beside` has
    finished already, of the same name and config, is copied from there.

    Raises:
        UserError: the folder holds another study, other commands train another plan there, or this machine cannot train
            it.
        Interrupted: a signal came; every run has written a checkpoint.
    """
    runs = plan.runs
    if world_size() > 1:
        raise UserError(
            f"torchrun spreads one run, and this is a study of {len(runs)}: start it without torchrun. "
            "On several machines, start the same command on each."
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
                return execute(grouped, where, engine, interrupt)

            return train_arms(plan, folder, train_all)


def _with_group(config: RunConfig, group: str) -> RunConfig:
    """Give a run its study's name as wandb group, unless its config sets one."""
    return dataclasses.replace(config, wandb=dataclasses.replace(config.wandb, group=config.wandb.group or group))


def _copy_finished(runs: dict[str, RunConfig], source: Path, folder: Path) -> None:
    """Copy the runs that another study's folder holds finished; in wandb they stay with that study."""
    copies = 0
    for name, config in runs.items():
        theirs = source / name
        if not intact_summary(theirs) or differences(read_config(theirs), config):
            continue
        with claimed(folder / name) as mine:
            if not mine or (folder / name).exists():  # another command copies or trains it, or has done so
                continue
            size = sum(path.lstat().st_size for path in theirs.rglob("*"))
            with writing(folder, size), write_folder(folder / name) as copy:
                shutil.copytree(theirs, copy, ignore=shutil.ignore_patterns("wandb", ".lock"), dirs_exist_ok=True)
        copies += 1
    if copies:
        print(f"{copies} of {len(runs)} runs are copied from {source}, where they are finished", flush=True)


@contextmanager
def _open_study(folder: Path, plan: Plan) -> Iterator[None]:
    """Work in the folder of a study, together with other commands of the same plan.

    Raises:
        UserError: the folder holds something else, or other commands work there on another plan.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - OWN_FILES and "study.toml" not in names:
        raise UserError(f"{folder} exists and is not a study (it has no study.toml). {CHOOSE}")
    with StudyLock(folder) as lock:
        # Twice, since another command may have been about to leave.
        for _ in range(2):
            if lock.take_alone():
                _prepare(folder, plan)
            lock.share()
            if _holds(folder / "study.toml", plan):
                break
        else:
            raise UserError(
                f"{folder} is being trained by other commands, with other settings than these. Give the same as they "
                f"({folder / 'study.toml'}), or wait for them. {CHOOSE}"
            )
        yield


def _prepare(folder: Path, plan: Plan) -> None:
    """Make the folder of a study ready for this plan: it is empty, or its own plan is a part of this one."""
    path = folder / "study.toml"
    begun = path.exists() and any(folder.rglob("config.toml"))
    # Without runs, a study.toml is either of a study that was stopped early, or a plan that somebody wrote by hand.
    if not begun and path.exists() and not _is_ours(path):
        raise UserError(f"{path} is not of a study, and the plan of this one would take its place. {CHOOSE}")
    if begun:
        grow(folder, plan)
    for config in folder.glob("*/config.toml"):
        read_config(config.parent)  # refuses a plugin that has changed since
    if not _holds(path, plan):
        write_file(path, tomli_w.dumps(plan.tree))
    forget_failures(folder)


def _holds(path: Path, plan: Plan) -> bool:
    """Whether a study.toml holds this plan."""
    with suppress(OSError, ValueError, RecursionError):
        return tomllib.loads(path.read_text(encoding="utf-8")) == tomllib.loads(tomli_w.dumps(plan.tree))
    return False


def _is_ours(path: Path) -> bool:
    """Whether the text of a TOML file is as this project writes it, so that nobody has written it by hand."""
    with suppress(OSError, ValueError, RecursionError):
        text = path.read_text(encoding="utf-8")
        return tomli_w.dumps(tomllib.loads(text)) == text
    return False
