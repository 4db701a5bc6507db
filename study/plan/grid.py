"""The grids of a study: a tree of sections in which a list is an axis, and the runs that it stands for."""

import hashlib
import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any

from errors import UserError
from study.plan.config import TABLES, Tree
from training.config import SECTIONS, WHERE

Key = tuple[str, str]  # section and name of a field
Point = dict[Key, Any]  # the values that tell a run from the others

LONGEST_NAME = 255  # bytes, as file systems allow
ACTIVATION: Key = ("model", "activation")
# Fields that no [[grid]] can set.
ONE_FOR_ALL = {*WHERE, "study.reference", "study.engine", "study.margin"}


def axes(tree: Tree) -> dict[Key, list[Any]]:
    """Return the fields of one grid that hold lists: those that vary over its runs."""
    lists: dict[Key, list[Any]] = {}
    # A list in [study], such as lr, is a value of its own.
    for section in [section for section in tree if section in SECTIONS]:
        for key, values in tree[section].items():
            if not isinstance(values, list):
                continue
            name = f"{section}.{key}"
            # The values may be of any type, tables among them, which no set holds: their texts stand for them.
            if not values or len(set(map(repr, values))) < len(values):
                raise UserError(f"{name} = {values}: a list needs one or more values, each once.")
            if name in WHERE:
                raise UserError(f"{name} cannot be a list: it does not change what is trained.")
            lists[section, key] = values
    return lists


def is_study(tree: Tree) -> bool:
    """Whether a tree describes several runs, or the tuning of one."""
    return "grid" in tree or bool(axes(tree)) or bool(tree.get("study", {}).get("lr"))


def points(tree: Tree, source: str) -> Iterator[tuple[Point, Tree]]:
    """Yield each combination of the listed values: what it sets, and the sections of its run, [study] among them.

    A field with a list is an axis. A point is one value of each axis, and stands for a run. Runs whose points differ
    only in the seed are an arm. A study may have several [[grid]], each with axes of its own above the sections that
    all share:

        [model]
        activation = ["relu", "gelu"]   # an axis of two values
        [train]
        seed = [0, 1, 2]                # with this one: six points, six runs, two arms of three seeds

    Raises:
        UserError: a list or a [[grid]] sets what it cannot set. The message calls the tree `source`.
    """
    shared = {name: part for name, part in tree.items() if name not in (*TABLES, "claim")}
    for own in tree.get("grid", [{}]):
        grid = shared | {name: shared.get(name, {}) | part for name, part in own.items()}
        keys = [(section, key) for section, part in own.items() for key in part]
        # These belong to the study and its machine. A grid is about what is trained.
        for section, key in keys:
            if f"{section}.{key}" in ONE_FOR_ALL:
                raise UserError(f"[[grid]]: {section}.{key} is one for all runs: set it outside of the grids.")
        lists = axes(grid)
        _check_tuning(grid.get("study", {}), lists, source)
        # What a grid sets itself names its runs even where it is no list: it tells them from another grid's.
        names = dict.fromkeys([key for key in keys if key[0] != "study"]) | dict.fromkeys(lists)
        for values in itertools.product(*lists.values()):
            sections = {name: dict(part) for name, part in grid.items()}
            for (section, key), value in zip(lists, values, strict=True):
                sections[section][key] = value
            yield {(section, key): sections[section][key] for section, key in names}, sections


def _check_tuning(study: Tree, lists: Collection[Key], source: str) -> None:
    """Raise `UserError` for a learning rate that is both tuned and listed, and for a bracket around no tuned rate."""
    if study.get("lr") and ("train", "lr") in lists:
        raise UserError(f"{source}: train.lr is a list and study.lr tunes it: drop one of the two.")
    if "bracket" in study and not study.get("lr"):
        raise UserError(
            f"{source}: study.bracket = {study['bracket']} without study.lr: a bracket lies around the best rate of a "
            "grid. List rates in study.lr, or leave study.bracket out."
        )


def run_name(point: Point) -> str:
    """Return the folder name of a run from the values that tell it apart: `relu-seed2`, `gelu-lr0.003-seed1`."""
    parts = [str(value) for key, value in point.items() if key == ACTIVATION]
    parts += [f"{key}{value}" for (section, key), value in point.items() if (section, key) != ACTIVATION]
    return shorten(re.sub(r"[^\w.+-]", "_", "-".join(parts)))


def shorten(name: str) -> str:
    """Return a name that a folder can have: of one that is too long, its beginning and a hash."""
    whole = name.encode()
    if len(whole) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:8]
    return f"{whole[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
