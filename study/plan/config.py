"""From a TOML file and flags to one tree of sections. Free of torch, so that `--help` answers at once."""

import dataclasses
import os
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Fixed, FlagCreatePairsOff, Positional, SuppressFixed, arg

from errors import UserError, unknown
from training.config import SECTIONS, STRICT, WHERE, read_toml

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
            "optimizer=sgd. By default gelu, or the first arm if none or all are gelu"
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
            description="learning rates, a factor of 1.41 apart, that every fresh seed of a tuned arm trains at. The "
            "interval of a difference then covers the choice of the rate. 1: the best tuned rate alone",
        ),
    ] = 3
    margin: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="smallest difference that matters, nats per token")
    ] = MARGIN
    engine: Annotated[
        Literal["auto", "processes", "stacked", "ray"],
        Field(
            description="processes: one for each core. stacked: runs that differ only in seed and lr train as one "
            "batched program. ray: the machines of a Ray cluster. auto: stacked on cuda, else processes"
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
FIELDS = {
    (section, field.name): field
    for section, part in ALL_SECTIONS.items()
    for field in dataclasses.fields(part)
    if field.name not in ("plugin", "plugin_sha256")  # --plugin sets both
}
BOOLEANS = {"True": "true", "False": "false"}  # as an agent of a wandb sweep writes them

DESCRIPTION = (
    "Train one run, or every run of a study. A field with a list is an axis of a study: one run for each value. "
    "Flags override the file, and the file overrides the defaults. Flags are written as in TOML, text without quotes "
    '(--train.lr=3e-3 --model.activation=\'["relu", "gelu"]\'). The same command again resumes.'
)
CONFIG, OUT = "TOML file of a run or a study, or a folder of studies", "folder of the run or study"
PLUGIN = "Python file that adds activations; it is executed"
DRY_RUN = "print the runs, the size of each network and the time; train nothing"
NAMES = "print the activations, each with its formula and source; train nothing"
UNNAMED = Path("runs/<name of the config>")


@dataclasses.dataclass
class Command:
    """The command line of train.py; `flags` holds the fields of sections that were given."""

    config: Positional[Annotated[Path, arg(help=CONFIG, help_behavior_hint="(default: configs/quick.toml)")]]
    out: Annotated[Path, arg(metavar="DIR", help=OUT, help_behavior_hint=f"(default: {UNNAMED})")] = UNNAMED
    plugin: Annotated[Path | None, arg(metavar="FILE", help=PLUGIN, help_behavior_hint="(default: none)")] = None
    dry_run: Annotated[FlagCreatePairsOff[bool], arg(help=DRY_RUN)] = False
    list: Annotated[FlagCreatePairsOff[bool], arg(help=NAMES)] = False
    flags: SuppressFixed[Fixed[Tree]] = dataclasses.field(default_factory=dict)


def parse_command(arguments: Sequence[str], default: Path) -> Command:
    """Read the command line; --help and mistakes end the process as tyro does (exit codes 0 and 2).

    Raises:
        UserError: a section has no such field.
    """
    # Before tyro, which finds the right flag for few mistakes.
    for argument in arguments:
        _check_flag(argument)
    # tyro gets every field of every section as an optional string: its value is written as in TOML, where a list makes
    # a study.
    sections = []
    for section, part in ALL_SECTIONS.items():
        flags = []
        for (its_section, name), field in FIELDS.items():
            if its_section == section:
                kind, info = get_args(field.type)
                metavar = "LIST" if get_origin(kind) is tuple else "|".join(get_args(kind)) or kind.__name__.upper()
                hint = f"(default: {field.default})"
                argument = arg(metavar=metavar, help=info.description, help_behavior_hint=hint)
                flags.append((name, Annotated[str | None, argument], None))
        made = dataclasses.make_dataclass(section, flags, namespace={"__doc__": part.__doc__})
        sections.append((section, made, dataclasses.field(default_factory=made)))
    flags_type = dataclasses.make_dataclass("Flags", sections, bases=(Command,))
    command = tyro.cli(
        flags_type,
        args=arguments,
        default=flags_type(default),
        prog="python train.py",
        description=DESCRIPTION,
        use_underscores=True,
    )
    for (section, name), field in FIELDS.items():
        text = getattr(getattr(command, section), name)
        if text is not None:
            command.flags.setdefault(section, {})[name] = _value(text, get_args(field.type)[0])
    if command.out == UNNAMED:
        name = command.config.stem
        if "WANDB_SWEEP_ID" in os.environ:  # an agent gives every run of a sweep the same config and out
            name += f"-{os.environ.get('WANDB_RUN_ID', '')}"
        command.out = Path("runs") / name
    command.out = command.out.expanduser()  # the shell expands no ~ after a =
    return command


def _check_flag(argument: str) -> None:
    """Raise `UserError` for a flag that no section has, with the one that is probably meant."""
    name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
    section, dot, key = name.partition(".")
    if not argument.startswith("--") or (section, key) in FIELDS:
        return
    if dot and section in ALL_SECTIONS:
        # The right field of the wrong section comes first; else the nearest field of this section.
        near = [field for field in FIELDS if field[1] == key] or [field for field in FIELDS if field[0] == section]
        raise UserError(unknown("flag", f"--{name}", [f"--{part}.{field}" for part, field in near]))
    # --lr lacks its section, --wandb its field.
    whole = [f"--{part}.{field}" for part, field in FIELDS if name in (part, field)]
    if whole:
        raise UserError(f"{argument}: a flag has a section and a field. Use {' or '.join(whole)}.")


def _value(text: str, kind: Any) -> Any:
    """Return the value of a flag; text that is not TOML stays text, which the config's types then judge."""
    # A path or a name needs no quotes. A list of them does, as in TOML.
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
    """Read a TOML file and lay the flags over it, over every [[grid]] of it too.

    Raises:
        UserError: the file cannot be read, or something in it is no section; the fields are checked by the plan.
    """
    tree = read_toml(path)
    _check_sections(tree, (*ALL_SECTIONS, "claim", *TABLES), path)
    for grid in tree.get("grid", []):
        _check_sections(grid, ALL_SECTIONS, path)
        # A grid stands above the sections that all share, and so would stand above a flag.
        for section in grid.keys() & flags.keys():
            grid[section] = {key: value for key, value in grid[section].items() if key not in flags[section]}
    return tree | {section: tree.get(section, {}) | fields for section, fields in flags.items()}


def _check_sections(tree: Tree, allowed: Collection[str], path: Path) -> None:
    """Raise `UserError` for a section that is not allowed, and for a key outside of any section."""
    for name, part in tree.items():
        tables = isinstance(part, list) and part != [] and all(isinstance(table, dict) for table in part)
        if name in TABLES and not tables:
            raise UserError(f"{path}: {name}: written as [[{name}]], once for each.")
        if not isinstance(part, dict) and (not tables or name in ALL_SECTIONS):
            raise UserError(f"{path}: {name}: every key stands in a section ({', '.join(ALL_SECTIONS)}).")
        if name not in allowed:
            raise UserError(f"{path}: " + unknown("section", name, allowed))


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the values of a tree as `section.key`; the tables of a list are numbered."""
    flat: dict[str, Any] = {}
    for section, part in tree.items():
        entries = part.items() if isinstance(part, dict) else enumerate(part, 1)
        flat |= {f"{section}.{key}": value for key, value in entries}
    return flat


def trained_settings(tree: Tree) -> dict[str, Any]:
    """Return the values of a tree as `flatten` does, without those that do not change what is trained."""
    return {key: value for key, value in flatten(tree).items() if key not in WHERE}
