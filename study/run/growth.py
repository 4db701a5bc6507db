"""A study can grow: its folder takes a plan that contains the earlier one, and keeps the runs that are finished."""

import os
import shutil
from pathlib import Path

from errors import UserError
from study.plan.config import merge, trained_settings
from study.plan.plan import Plan, PlannedArm, make_plan
from study.run.search import left_to_train
from training.config import RunConfig, tree
from training.folder import CHOOSE


def grow(folder: Path, plan: Plan) -> None:
    """Prepare the folder of a study that has begun for a plan that contains its own.

    If it has results, its study.toml is kept as study-1.toml, study-2.toml and so on: the page marks what was asked for
    after a look at them.

    Raises:
        UserError: the plan lacks runs, learning rates or seeds of the earlier one, or tunes its arms in another way.
    """
    path = folder / "study.toml"
    old = make_plan(merge(path, {}), str(path))
    if lines := _missing(old, plan):
        raise UserError(
            "\n  ".join(
                [f"{folder} holds a study that this one lacks parts of:", *lines, f"Ask for these too. Or: {CHOOSE}"]
            )
        )
    names = {_trained(config): name for name, config in plan.runs.items()}
    renamed = {name: names[_trained(config)] for name, config in old.runs.items()}
    arms = [(_trained(arm.config), arm.study.lr, arm.study.bracket) for arm in plan.arms.values()]
    same_arms = [(_trained(arm.config), arm.study.lr, arm.study.bracket) for arm in old.arms.values()] == arms
    if same_arms and len(old.runs) == len(plan.runs):
        return
    if (folder / "report.html").exists() and not any(left_to_train(old, folder).values()):
        looks = len([*folder.glob("study-*.toml")])
        shutil.copyfile(path, folder / f"study-{looks + 1}.toml")
    # With a second seed, or a second value of anything, the names of runs get longer.
    for name, new_name in renamed.items():
        if new_name != name and (folder / name).exists():
            os.replace(folder / name, folder / new_name)


def _trained(config: RunConfig) -> str:
    """Return a text that is equal for configs that train the same."""
    return repr(trained_settings(tree(config)))


def _missing(old: Plan, new: Plan) -> list[str]:
    """Return what an earlier plan has and a new one lacks, a line for each arm."""
    planned = {_trained(config) for config in new.runs.values()}
    names = {_trained(arm.config): name for name, arm in new.arms.items()}
    lines = []
    for name, arm in old.arms.items():
        seeds = [str(run.train.seed) for run in arm.runs.values() if _trained(run) not in planned]
        if seeds:
            lines.append(f"{name}: seed {', '.join(seeds)}")
            continue
        new_name = names[_trained(arm.config)]
        # The runs of a tuned arm are named after it, those in tune/ too: under another name they would train again.
        if arm.study.lr and new_name != name:
            lines.append(f"{name}: its runs would be named {new_name}")
        lines += [f"{name}: {line}" for line in _missing_in_arm(arm, new.arms[new_name])]
    return lines


def _missing_in_arm(old: PlannedArm, new: PlannedArm) -> list[str]:
    lines = []
    if bool(old.study.lr) != bool(new.study.lr) or not set(old.study.lr) <= set(new.study.lr):
        lines.append(f"study.lr = {[*old.study.lr]}, not {[*new.study.lr]}")
    if old.study.bracket > new.study.bracket:
        lines.append(f"study.bracket = {old.study.bracket}, not {new.study.bracket}")
    if old.study.lr:
        for field in ("tune_seeds", "tune_share"):
            if getattr(old.study, field) != getattr(new.study, field):
                lines.append(f"study.{field} = {getattr(old.study, field)}, not {getattr(new.study, field)}")
    return lines
