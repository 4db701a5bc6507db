"""From a TOML file and flags to the runs that they describe. Free of torch, so that `--help` answers at once."""

import dataclasses
import itertools
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from errors import UserError
from training.config import SECTIONS, RunConfig, build, read_toml

Tree = dict[str, dict[str, Any]]

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
    flags: Tree


def parse_command(arguments: list[str], default: Path) -> Command:
    """Read the command line; --help and mistakes end the process as tyro does (exit codes 0 and 2)."""
    given = tyro.cli(_flags_type(default), args=arguments, prog="python train.py", description=DESCRIPTION)
    flags: Tree = {}
    for section, part in SECTIONS.items():
        for field in dataclasses.fields(part):
            text = getattr(getattr(given, section), field.name)
            if text is not None:
                flags.setdefault(section, {})[field.name] = _value(text, get_args(field.type)[0] is str)
    return Command(given.config, given.out or Path("runs") / given.config.stem, given.plugin, flags)


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
                    arg(help="TOML file of a run or a study", help_behavior_hint=f"(default: configs/{default.name})"),
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
    for name, part in SECTIONS.items():
        flags = []
        for field in dataclasses.fields(part):
            kind, info = get_args(field.type)
            metavar = "|".join(get_args(kind)) or kind.__name__.upper()
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


def merge(path: Path, flags: Tree) -> Tree:
    """Read a TOML file and lay the flags over it."""
    tree = read_toml(path)
    if tables := [name for name, values in tree.items() if not isinstance(values, dict)]:
        raise UserError(f"{path}: {', '.join(tables)}: every key stands in a section ({', '.join(SECTIONS)}).")
    return {name: tree.get(name, {}) | flags.get(name, {}) for name in [*tree, *flags]}


def axes(tree: Tree) -> dict[tuple[str, str], list[Any]]:
    """Return the fields that hold lists: those that vary over the runs of a study."""
    lists = {(s, key): value for s, part in tree.items() for key, value in part.items() if isinstance(value, list)}
    for (section, key), values in lists.items():
        if not values or len(set(map(repr, values))) < len(values):
            raise UserError(f"{section}.{key} = {values}: a list names one or more values, each once.")
    return lists


def expand(tree: Tree, source: str) -> dict[str, RunConfig]:
    """Return the runs of a tree by name: one for each combination of the listed values; one, named "", without lists.

    Raises:
        UserError: a key or value is not allowed, in any of the runs.
    """
    lists = axes(tree)
    runs: dict[str, RunConfig] = {}
    for values in itertools.product(*lists.values()):
        point = dict(zip(lists, values, strict=True))
        concrete = {name: dict(part) for name, part in tree.items()}
        for (section, key), value in point.items():
            concrete[section][key] = value
        name = run_name(point)
        if name in runs:
            raise UserError(f"two runs would share the folder name {name!r}.")
        runs[name] = build(concrete, source)
    return runs


def run_name(point: dict[tuple[str, str], Any]) -> str:
    """Return the folder name of a run from the values that set it apart: `relu`, `relu-seed2`, `gelu-lr0.003-seed1`."""
    parts = [str(v) for (_, key), v in point.items() if key == "activation"]
    parts += [f"{key}{value}" for (_, key), value in point.items() if key != "activation"]
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))
