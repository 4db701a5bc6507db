"""From a TOML file and flags to one tree of sections. Free of torch, so that `--help` answers at once."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from training.config import SECTIONS, STRICT, read_toml

Tree = dict[str, Any]  # sections, as in TOML
TABLES = ("grid", "prediction")  # lists of tables
MARGIN = 0.01  # nats per token: the smallest difference that matters, 1 % of perplexity


@dataclass(frozen=True, config=STRICT)
class StudyConfig:
    """How arms are compared. An arm is all runs that differ in nothing but their seed.

    `engine` chooses how they are trained; it may differ when a study is resumed.
    """

    reference: Annotated[
        str,
        Field(
            description="arm that the others are compared with: an activation, or a value that varies, such as "
            "optimizer=sgd; without it gelu, or the table's first arm where none or all are gelu"
        ),
    ] = "gelu"
    # not strict: TOML has lists, not tuples
    lr: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(strict=False, description="learning rates that each arm is tuned on; without them all train at train.lr"),
    ] = ()
    tune_seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
        Field(strict=False, min_length=1, description="seeds of the tuning runs; none of them is in train.seed"),
    ] = (1000,)
    tune_share: Annotated[
        float, Field(gt=0, le=1, description="budget of a tuning run, as a share of train.tokens")
    ] = 0.5
    bracket: Annotated[
        int,
        Field(
            ge=1,
            le=7,
            description="learning rates, a factor of 1.41 apart, that every fresh seed of a tuned arm trains at: the "
            "interval of a difference then covers the choice of the rate; 1: the best tuned rate alone",
        ),
    ] = 3
    margin: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="smallest difference that matters, nats per token")
    ] = MARGIN
    engine: Annotated[
        Literal["auto", "processes", "stacked", "ray"],
        Field(
            description="processes: one for each core; stacked: runs that differ only in seed and lr train as one "
            "batched program; ray: the machines of a Ray cluster; auto: stacked on cuda, else processes"
        ),
    ] = "auto"

    def __post_init__(self):
        names = {f"{lr:g}" for lr in self.lr}  # the tuning runs are named so
        if self.lr and len(names) < max(3, len(self.lr)):
            raise UserError(
                f"lr = {list(self.lr)}: a grid needs 3 different values or more, or its best is always at an edge. "
                "They must differ in their first six digits."
            )
        if self.bracket % 2 == 0:
            raise UserError(f"bracket = {self.bracket}: the best rate is in the middle, so use 1, 3, 5 or 7.")
        if len(set(self.tune_seeds)) < len(self.tune_seeds):
            raise UserError(f"tune_seeds = {list(self.tune_seeds)}: each seed once.")


ALL_SECTIONS: dict[str, type] = SECTIONS | {"study": StudyConfig}
FIELDS = [
    (section, field.name)
    for section, part in ALL_SECTIONS.items()
    for field in dataclasses.fields(part)
    if field.name not in ("plugin", "plugin_sha256")  # --plugin sets both
]
BOOLEANS = {"True": "true", "False": "false"}  # as an agent of a wandb sweep writes them
FLAG = re.compile(rf"--({'|'.join(ALL_SECTIONS)})\.([^=]*)")

DESCRIPTION = (
    "Train one run, or every run of a study. A field with a list is an axis of a study: one run for each value. "
    "Flags override the file, and the file overrides the defaults. Flags are written as in TOML, text without quotes "
    '(--train.lr=3e-3 --model.activation=\'["relu", "gelu"]\'). The same command again resumes.'
)


@dataclasses.dataclass(frozen=True)
class Command:
    """The command line of train.py; `flags` holds the fields that were given."""

    config: Path
    out: Path
    plugin: Path | None
    dry_run: bool
    list: bool
    flags: Tree


def parse_command(arguments: list[str], default: Path) -> Command:
    """Read the command line; --help and mistakes end the process as tyro does (exit codes 0 and 2).

    Raises:
        UserError: a section has no such field.
    """
    for argument in arguments:
        _check_flag(argument)
    given = tyro.cli(
        _flags_type(default), args=arguments, prog="python train.py", description=DESCRIPTION, use_underscores=True
    )
    flags: Tree = {}
    for section, name in FIELDS:
        text = getattr(getattr(given, section), name)
        if text is not None:
            flags.setdefault(section, {})[name] = _value(text, _kind(section, name))
    name = given.config.stem
    if "WANDB_SWEEP_ID" in os.environ:  # an agent gives every run of a sweep the same config and out
        name += f"-{os.environ.get('WANDB_RUN_ID', '')}"
    out = (given.out or Path("runs") / name).expanduser()  # the shell expands no ~ after a =
    return Command(given.config, out, given.plugin, given.dry_run, given.list, flags)


def _kind(section: str, name: str) -> Any:
    """Return the type of a field, which is written as Annotated[type, Field(...)]."""
    return get_args(ALL_SECTIONS[section].__dataclass_fields__[name].type)[0]


def _check_flag(argument: str) -> None:
    """Raise `UserError` for a flag that its section does not have: tyro finds the nearest one for few typos."""
    match = FLAG.match(argument)
    if not match:
        _check_section(argument)
        return
    section, key = match[1], match[2].replace("-", "_")
    if (section, key) in FIELDS:
        return
    # The right field of the wrong section comes first; else the nearest field of this section.
    near = [field for field in FIELDS if field[1] == key] or [field for field in FIELDS if field[0] == section]
    raise UserError(unknown("flag", f"--{section}.{key}", [f"--{s}.{name}" for s, name in near]))


def _check_section(argument: str) -> None:
    """Raise `UserError` for a flag without its section, such as --lr, or without its field, such as --wandb."""
    name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
    if not argument.startswith("--") or name in ("out", "plugin", "dry_run", "list", "help"):
        return
    whole = [f"--{section}.{field}" for section, field in FIELDS if name in (section, field)]
    if whole:
        raise UserError(f"{argument}: a flag has a section and a field. Use {' or '.join(whole)}.")


def _flags_type(default: Path) -> type:
    """Return a dataclass for tyro: every field of every section as an optional string, documented.

    Strings, since a flag's value is written as in TOML: `--train.lr=3e-3`, or a list, which makes a study.
    """
    arg = tyro.conf.arg
    config = arg(
        help="TOML file of a run or a study, or a folder of studies",
        help_behavior_hint=f"(default: configs/{default.name})",
    )
    out = arg(
        metavar="DIR",
        help="folder of the run or study",
        help_behavior_hint="(default: runs/<name of the config>)",
    )
    plugin = arg(
        metavar="FILE",
        help="Python file that adds activations; it is executed",
        help_behavior_hint="(default: none)",
    )
    flag = tyro.conf.FlagCreatePairsOff[bool]
    dry_run = arg(help="print the runs, the size of each network and the time; train nothing")
    names = arg(help="print the activations, each with its formula and source; train nothing")
    top = [
        ("config", tyro.conf.Positional[Annotated[Path, config]], default),
        ("out", Annotated[Path | None, out], None),
        ("plugin", Annotated[Path | None, plugin], None),
        ("dry_run", Annotated[flag, dry_run], False),
        ("list", Annotated[flag, names], False),
    ]
    for section, part in ALL_SECTIONS.items():
        flags = []
        for field in dataclasses.fields(part):
            if (section, field.name) not in FIELDS:
                continue
            kind, info = get_args(field.type)
            metavar = "LIST" if get_origin(kind) is tuple else "|".join(get_args(kind)) or kind.__name__.upper()
            hint = f"(default: {field.default})"
            argument = arg(metavar=metavar, help=info.description, help_behavior_hint=hint)
            flags.append((field.name, Annotated[str | None, argument], None))
        made = dataclasses.make_dataclass(section, flags, namespace={"__doc__": part.__doc__})
        top.append((section, made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass("Flags", top)


def _value(text: str, kind: Any) -> Any:
    """Return the value of a flag; text that is not TOML stays text, which the config's types then judge."""
    if kind is str and not text.startswith("["):
        return text
    try:
        value = tomllib.loads(f"value = {BOOLEANS.get(text, text)}")["value"]
    except ValueError:
        return text
    # 1e5 is a float in TOML, and what people write for a number of tokens.
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def configs_of(path: Path) -> list[Path]:
    """Return the TOML files that a path names: itself, or those in a folder, each of them a study."""
    if not path.is_dir():
        return [path]
    configs = sorted(path.glob("*.toml"))
    if not configs:
        raise UserError(f"{path} is a folder without a .toml file.")
    return configs


def merge(path: Path, flags: Tree) -> Tree:
    """Read a TOML file and lay the flags over it, over every [[grid]] of it too."""
    tree = read_toml(path)
    _check_sections(tree, [*ALL_SECTIONS, "claim", *TABLES], path)
    merged: Tree = {}
    for name, part in tree.items():
        if name in TABLES:
            if not _is_tables(part):
                raise UserError(f"{path}: {name}: written as [[{name}]], once for each.")
            merged[name] = part
        elif isinstance(part, dict):
            merged[name] = part | flags.get(name, {})
        else:
            raise UserError(f"{path}: {name}: every key stands in a section ({', '.join(ALL_SECTIONS)}).")
    if "grid" in merged:
        for grid in merged["grid"]:
            _check_sections(grid, ALL_SECTIONS, path)
        merged["grid"] = [_without(grid, flags) for grid in merged["grid"]]
    return merged | {name: part for name, part in flags.items() if name not in merged}


def _check_sections(tree: Tree, allowed: Collection[str], path: Path) -> None:
    for name, values in tree.items():
        if name not in allowed and (isinstance(values, dict) or _is_tables(values)):
            raise UserError(f"{path}: " + unknown("section", name, allowed))


def _is_tables(values: Any) -> bool:
    return isinstance(values, list) and values != [] and all(isinstance(v, dict) for v in values)


def _without(grid: Tree, flags: Tree) -> Tree:
    """Return a [[grid]] without the fields that flags set. What is no table stays, for a message to name it."""
    rest: Tree = {}
    for section, part in grid.items():
        if isinstance(part, dict):
            part = {key: value for key, value in part.items() if key not in flags.get(section, {})}
        rest[section] = part
    return rest


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the values of a tree as `section.key`; the tables of a list are numbered."""
    flat: dict[str, Any] = {}
    for section, part in tree.items():
        entries = part.items() if isinstance(part, dict) else enumerate(part, 1)
        flat |= {f"{section}.{key}": value for key, value in entries}
    return flat
