"""The grids of a study: from a tree of sections, in which a list is an axis, to the runs that it stands for."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from errors import UserError, unknown
from model.config import ModelConfig
from study.plan.config import ALL_SECTIONS, TABLES, StudyConfig, Tree
from training.config import SECTIONS, WHERE, RunConfig, TrainConfig, build, build_sections

Key = tuple[str, str]  # of a field: section, name
Point = dict[Key, Any]  # what sets a run apart
LONGEST = 255  # bytes of a run's name, as file systems have it
NOT_TRAINED = ("study", "claim")
ACTIVATION = ("model", "activation")
ONE_FOR_ALL = {*WHERE, "study.reference", "study.engine"}  # the grids of a study


def axes(tree: Tree) -> dict[Key, list[Any]]:
    """Return the fields of a grid that hold lists: those that vary over its runs."""
    parts = [(section, part) for section, part in tree.items() if section in SECTIONS]
    lists = {(s, key): value for s, part in parts for key, value in part.items() if isinstance(value, list)}
    for (section, key), values in lists.items():
        if not values or len(set(map(repr, values))) < len(values):
            raise UserError(f"{section}.{key} = {values}: a list names one or more values, each once.")
        if f"{section}.{key}" in WHERE:
            raise UserError(f"{section}.{key} = {values}: where a run runs tells it from no other; give one value.")
    return lists


def grids(tree: Tree) -> list[tuple[Tree, list[Key]]]:
    """Return the grids of a tree, each laid over what they share, with the fields that it sets itself.

    Without a [[grid]], the tree is the only one.
    """
    shared = {name: part for name, part in tree.items() if name not in TABLES}
    found = []
    for own in tree.get("grid", [{}]):
        if wrong := [name for name, part in own.items() if not isinstance(part, dict)]:
            raise UserError(f"[[grid]]: {', '.join(wrong)}: every key stands in a section, such as model.{wrong[0]}.")
        laid = shared | {name: shared.get(name, {}) | part for name, part in own.items()}
        keys = [(section, key) for section in own for key in own[section]]
        if wrong := [f"{section}.{key}" for section, key in keys if f"{section}.{key}" in ONE_FOR_ALL]:
            raise UserError(f"[[grid]]: {wrong[0]} is one for all runs: set it outside of the grids.")
        found.append((laid, [key for key in keys if key[0] != "study"]))
    return found


def is_study(tree: Tree) -> bool:
    """Whether a tree describes several runs, or the tuning of one."""
    return "grid" in tree or bool(axes(tree)) or bool(tree.get("study", {}).get("lr"))


def points(tree: Tree) -> Iterator[tuple[Point, Tree]]:
    """Yield each combination of the listed values: what it sets, and the sections of its run, [study] among them."""
    for grid, own in grids(tree):
        lists = axes(grid)
        for values in itertools.product(*lists.values()):
            listed = dict(zip(lists, values, strict=True))
            point = {(s, key): listed.get((s, key), grid[s][key]) for s, key in dict.fromkeys([*own, *lists])}
            sections = {name: dict(part) for name, part in grid.items() if isinstance(part, dict)}
            for (section, key), value in point.items():
                sections[section][key] = value
            yield point, sections


def study_config(tree: Tree, source: str) -> StudyConfig:
    """Return the section [study] of a tree, or of one of its grids.

    Raises:
        UserError: a key or value is not allowed, or does not go with the runs.
    """
    reference, named = _study(tree, source).reference, "reference" in tree.get("study", {})
    if named and reference not in (allowed := _parts(tree, source)):
        raise UserError(f"{source}: study.reference: " + unknown("reference", reference, allowed))
    for grid, _ in grids(tree):
        study = _study(grid, source)
        if study.lr and ("train", "lr") in axes(grid):
            raise UserError(f"{source}: train.lr is a list and study.lr tunes it: drop one of the two.")
        seeds = grid.get("train", {}).get("seed", TrainConfig.seed)
        if study.lr and (both := sorted(set(study.tune_seeds) & set(seeds if isinstance(seeds, list) else [seeds]))):
            raise UserError(
                f"{source}: seed {both[0]} is in study.tune_seeds and in train.seed: a tuned arm needs fresh seeds."
            )
    return _study(tree, source)


def _study(tree: Tree, source: str) -> StudyConfig:
    return build_sections({"study": tree.get("study", {})}, ALL_SECTIONS, source)["study"]


def _parts(tree: Tree, source: str) -> list[str]:
    """Return what tells the arms of a tree apart, as the table writes it: `relu`, or `optimizer=sgd`."""
    fields = dict.fromkeys(key for point, _ in points(tree) for key in point)
    others = [(section, key) for section, key in fields if key not in ("activation", "seed")]
    runs = expand(tree, source).values()
    parts = [run.model.activation for run in runs]
    parts += [f"{key}={getattr(getattr(run, section), key)}" for section, key in others for run in runs]
    return [*dict.fromkeys(parts)]


def expand(tree: Tree, source: str) -> dict[str, RunConfig]:
    """Return the runs of a tree by name: one for each combination of the listed values; one, named "", without lists.

    A run that two grids describe is there once.

    Raises:
        UserError: a key or value is not allowed, in any of the runs.
    """
    return {name: run for name, (run, _) in planned(tree, source).items()}


def planned(tree: Tree, source: str) -> dict[str, tuple[RunConfig, StudyConfig]]:
    """Return the runs as `expand`, each with the [study] of its grid."""
    runs: dict[str, tuple[RunConfig, StudyConfig]] = {}
    for point, sections in points(tree):
        name = run_name(point)
        if not name and is_study(tree):  # a tuned study of one arm has no list
            name = run_name({ACTIVATION: sections.get("model", {}).get("activation", ModelConfig.activation)})
        run = build({name: part for name, part in sections.items() if name not in NOT_TRAINED}, source)
        if any(run == other for other, _ in runs.values()):
            continue
        if name in runs:
            raise UserError(f"two runs would share the folder name {name!r}.")
        runs[name] = run, _study(sections, source)
    return runs


def run_name(point: Point) -> str:
    """Return the folder name of a run from the values that set it apart: `relu`, `relu-seed2`, `gelu-lr0.003-seed1`."""
    parts = [str(v) for (_, key), v in point.items() if key == "activation"]
    parts += [f"{key}{value}" for (_, key), value in point.items() if key != "activation"]
    return shortened(re.sub(r"[^\w.+-]", "_", "-".join(parts)))


def shortened(name: str) -> str:
    """Return a name, or of one that no folder can have its beginning and a hash."""
    if len(whole := name.encode()) <= LONGEST:
        return name
    return f"{whole[: LONGEST - 9].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"
