"""From a TOML file and flags to the runs that they describe. Free of torch, so that `--help` answers at once."""

import dataclasses
import itertools
import os
import re
import tomllib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from model.config import ModelConfig
from training.config import SECTIONS, STRICT, RunConfig, TrainConfig, build, build_sections, read_toml

Tree = dict[str, Any]  # sections, as in TOML
Key = tuple[str, str]  # of a field: section, name
Point = dict[Key, Any]  # what sets a run apart
TABLES = ("grid", "prediction")  # lists of tables
NOT_TRAINED = ("study", "claim")


@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """How arms are compared: an arm is what remains of a run when its seed and learning rate are taken away."""

    reference: Annotated[
        str,
        Field(
            description="what the others are compared with: an activation, or such as optimizer=sgd where that varies; "
            "not given and not among them: the first"
        ),
    ] = "gelu"
    # not strict: TOML has lists, not tuples
    lr: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(strict=False, description="learning rates that each arm is tuned on; none: all runs take train.lr"),
    ] = ()
    tune_seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(strict=False, min_length=1, description="seeds of the tuning runs; none of train.seed"),
    ] = (1000,)
    tune_share: Annotated[
        float, Field(gt=0, le=1, description="budget of a tuning run, as a share of train.tokens")
    ] = 0.5

    def __post_init__(self):
        if self.lr and len(set(self.lr)) < 3:
            raise UserError(
                f"lr = {list(self.lr)}: a grid has 3 different values or more, else its best lies at an edge."
            )


ALL_SECTIONS: dict[str, type] = SECTIONS | {"study": StudyConfig}

DESCRIPTION = (
    "Train one run, or every run of a study. A field that holds a list is an axis of a study: one run for each value. "
    "Flags stand above the file, the file above the defaults; they are written as in TOML "
    '(--train.lr=3e-3 --model.activation=\'["relu", "gelu"]\'). The same command again resumes.'
)


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line of train.py asks for; `flags` holds the fields that were given."""

    config: Path
    out: Path
    plugin: Path | None
    dry_run: bool
    flags: Tree


def parse_command(arguments: list[str], default: Path) -> Command:
    """Read the command line; --help and mistakes end the process as tyro does (exit codes 0 and 2)."""
    given = tyro.cli(_flags_type(default), args=arguments, prog="python train.py", description=DESCRIPTION)
    flags: Tree = {}
    for section, part in ALL_SECTIONS.items():
        for field in dataclasses.fields(part):
            text = getattr(getattr(given, section), field.name)
            if text is not None:
                flags.setdefault(section, {})[field.name] = _value(text, get_args(field.type)[0] is str)
    name = given.config.stem
    if "WANDB_SWEEP_ID" in os.environ:  # an agent gives every run of a sweep the same config and out
        name += f"-{os.environ.get('WANDB_RUN_ID', '')}"
    return Command(given.config, given.out or Path("runs") / name, given.plugin, given.dry_run, flags)


def _flags_type(default: Path) -> type:
    """Return a dataclass for tyro: every field of every section as an optional string, documented.

    Strings, since a flag's value is written as in TOML: `--train.lr=3e-3`, or a list, which makes a study.
    """
    arg = tyro.conf.arg
    top = [
        (
            "config",
            tyro.conf.Positional[
                Annotated[
                    Path,
                    arg(
                        help="TOML file of a run or a study, or a folder of studies",
                        help_behavior_hint=f"(default: configs/{default.name})",
                    ),
                ]
            ],
            default,
        ),
        (
            "out",
            Annotated[
                Path | None,
                arg(
                    metavar="DIR",
                    help="folder of the run or study",
                    help_behavior_hint="(default: runs/<name of the config>)",
                ),
            ],
            None,
        ),
        (
            "plugin",
            Annotated[
                Path | None,
                arg(
                    metavar="FILE",
                    help="Python file that adds activations; it is executed",
                    help_behavior_hint="(default: none)",
                ),
            ],
            None,
        ),
    ]
    top.append(("dry_run", Annotated[bool, arg(help="print the runs, their match and the time; train nothing")], False))
    for name, part in ALL_SECTIONS.items():
        flags = []
        for field in dataclasses.fields(part):
            kind, info = get_args(field.type)
            metavar = "LIST" if get_origin(kind) is tuple else "|".join(get_args(kind)) or kind.__name__.upper()
            hint = f"(default: {field.default})"
            argument = arg(metavar=metavar, help=info.description, help_behavior_hint=hint)
            flags.append((field.name, Annotated[str | None, argument], None))
        section = dataclasses.make_dataclass(name, flags, namespace={"__doc__": part.__doc__})
        top.append((name, section, dataclasses.field(default_factory=section)))
    return dataclasses.make_dataclass("Flags", top)


def _value(text: str, is_string: bool) -> Any:
    if is_string and not text.startswith("["):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word; the types of the config judge it


def configs_of(path: Path) -> list[Path]:
    """Return the TOML files that a path names: itself, or those in a folder, each of them a study."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.toml"))
    if not found:
        raise UserError(f"{path} is a folder without a .toml file.")
    return found


def merge(path: Path, flags: Tree) -> Tree:
    """Read a TOML file and lay the flags over it, over every [[grid]] of it too."""
    tree = read_toml(path)
    tables = {name: values for name, values in tree.items() if name not in TABLES}
    lists = {name: values for name, values in tree.items() if name in TABLES}
    if wrong := [name for name, values in tables.items() if not isinstance(values, dict)]:
        raise UserError(f"{path}: {', '.join(wrong)}: every key stands in a section ({', '.join(ALL_SECTIONS)}).")
    if wrong := [name for name, values in lists.items() if not _is_tables(values)]:
        raise UserError(f"{path}: {', '.join(wrong)}: written as [[{wrong[0]}]], once for each.")
    if "grid" in lists:
        above = {(section, key) for section, part in flags.items() for key in part}
        lists["grid"] = [_without(grid, above) for grid in lists["grid"]]
    return lists | {name: tables.get(name, {}) | flags.get(name, {}) for name in [*tables, *flags]}


def _is_tables(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, dict) for v in values)


def _without(tree: Tree, keys: Container[tuple[str, str]]) -> Tree:
    return {
        section: {key: value for key, value in part.items() if (section, key) not in keys}
        if isinstance(part, dict)
        else part
        for section, part in tree.items()
    }


def axes(tree: Tree) -> dict[Key, list[Any]]:
    """Return the fields of a grid that hold lists: those that vary over its runs."""
    parts = [(section, part) for section, part in tree.items() if section in SECTIONS]
    lists = {(s, key): value for s, part in parts for key, value in part.items() if isinstance(value, list)}
    for (section, key), values in lists.items():
        if not values or len(set(map(repr, values))) < len(values):
            raise UserError(f"{section}.{key} = {values}: a list names one or more values, each once.")
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
        found.append((laid, [(section, key) for section in own if section != "study" for key in own[section]]))
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
            name = str(sections.get("model", {}).get("activation", ModelConfig.activation))
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
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))
