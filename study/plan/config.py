"""From a TOML file and flags to one tree of sections. Free of torch, so that `--help` answers at once."""

import dataclasses
import os
import re
from collections.abc import Collection, Container
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from training.config import SECTIONS, STRICT, parse_toml, read_toml

Tree = dict[str, Any]  # sections, as in TOML
TABLES = ("grid", "prediction")  # lists of tables


@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """How arms are compared: an arm is what remains of a run when its seed and learning rate are taken away.

    `engine` says how they are trained: it may differ when a study is resumed.
    """

    reference: Annotated[
        str,
        Field(
            description="what the others are compared with: an activation, or such as optimizer=sgd where that varies; "
            "not given: gelu, or the first in the table where none or all are gelu"
        ),
    ] = "gelu"
    # not strict: TOML has lists, not tuples
    lr: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(strict=False, description="learning rates that each arm is tuned on; none: all runs take train.lr"),
    ] = ()
    tune_seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
        Field(strict=False, min_length=1, description="seeds of the tuning runs; none of train.seed"),
    ] = (1000,)
    tune_share: Annotated[
        float, Field(gt=0, le=1, description="budget of a tuning run, as a share of train.tokens")
    ] = 0.5

    engine: Annotated[
        Literal["auto", "processes", "stacked", "ray"],
        Field(
            description="a process for each core, runs that differ in seed and lr alone as one batched program, or the "
            "machines of a Ray cluster; auto: stacked on cuda, where small runs leave the GPU waiting"
        ),
    ] = "auto"

    def __post_init__(self):
        written = {f"{lr:g}" for lr in self.lr}  # as the tuning runs are named
        if self.lr and len(written) < max(3, len(self.lr)):
            raise UserError(
                f"lr = {list(self.lr)}: a grid has 3 different values or more, else its best lies at an edge; they "
                "differ in their first six digits."
            )
        if len(set(self.tune_seeds)) < len(self.tune_seeds):
            raise UserError(f"tune_seeds = {list(self.tune_seeds)}: each seed once.")


ALL_SECTIONS: dict[str, type] = SECTIONS | {"study": StudyConfig}
BOOLEANS = {"True": "true", "False": "false"}  # as an agent of a wandb sweep writes them
FLAG = re.compile(rf"--({'|'.join(ALL_SECTIONS)})\.[^=]*")

DESCRIPTION = (
    "Train one run, or every run of a study. A field that holds a list is an axis of a study: one run for each value. "
    "Flags stand above the file, the file above the defaults; they are written as in TOML, a text "
    'without quotes (--train.lr=3e-3 --model.activation=\'["relu", "gelu"]\'). The same command again resumes.'
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
    """Read the command line; --help and mistakes end the process as tyro does (exit codes 0 and 2).

    Raises:
        UserError: a section has no such field, or an argument is not UTF-8, as config.toml is.
    """
    for argument in arguments:
        if re.search(r"[\ud800-\udfff]", argument):
            raise UserError(f"{argument!a} is not UTF-8 in this locale. Set PYTHONUTF8=1 or give another name.")
        _check_flag(argument)
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
    out = (given.out or Path("runs") / name).expanduser()  # no shell does after a =
    return Command(given.config, out, given.plugin, given.dry_run, flags)


def _check_flag(argument: str) -> None:
    """Raise `UserError` for a flag that its section does not have: tyro has a suggestion for few typing errors."""
    if not (match := FLAG.match(argument)):
        return
    section, key = match[0][2:].replace("-", "_").split(".", 1)
    fields = [(name, field.name) for name, part in ALL_SECTIONS.items() for field in dataclasses.fields(part)]
    if (section, key) not in fields:
        elsewhere = [field for field in fields if field[1] == key]
        near = elsewhere or [field for field in fields if field[0] == section]
        raise UserError(unknown("flag", f"--{section}.{key}", [f"--{s}.{name}" for s, name in near]))


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
        return parse_toml(f"value = {BOOLEANS.get(text, text)}")["value"]
    except (ValueError, RecursionError):
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
    _check_sections(tree, [*ALL_SECTIONS, "claim", *TABLES], path)
    tables = {name: values for name, values in tree.items() if name not in TABLES}
    lists = {name: values for name, values in tree.items() if name in TABLES}
    if wrong := [name for name, values in tables.items() if not isinstance(values, dict)]:
        raise UserError(f"{path}: {', '.join(wrong)}: every key stands in a section ({', '.join(ALL_SECTIONS)}).")
    if wrong := [name for name, values in lists.items() if not _is_tables(values)]:
        raise UserError(f"{path}: {', '.join(wrong)}: written as [[{wrong[0]}]], once for each.")
    if "grid" in lists:
        for grid in lists["grid"]:
            _check_sections(grid, ALL_SECTIONS, path)
        above = {(section, key) for section, part in flags.items() for key in part}
        lists["grid"] = [_without(grid, above) for grid in lists["grid"]]
    return lists | {name: tables.get(name, {}) | flags.get(name, {}) for name in [*tables, *flags]}


def _check_sections(tree: Tree, allowed: Collection[str], path: Path) -> None:
    for name, values in tree.items():
        if name not in allowed and (isinstance(values, dict) or _is_tables(values)):
            raise UserError(f"{path}: " + unknown("section", name, allowed))


def _is_tables(values: Any) -> bool:
    return isinstance(values, list) and values != [] and all(isinstance(v, dict) for v in values)


def _without(tree: Tree, keys: Container[tuple[str, str]]) -> Tree:
    return {
        section: {key: value for key, value in part.items() if (section, key) not in keys}
        if isinstance(part, dict)
        else part
        for section, part in tree.items()
    }
