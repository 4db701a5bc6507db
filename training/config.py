"""What a run is: the configs of all parts, composed, read from TOML and written back.

Nothing here imports torch, so that the doors answer `--help` at once.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from data.config import DataConfig
from errors import STRICT, UserError, unknown
from model.config import ModelConfig

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How a run trains. `threads`, `device`, `compile` and `keep` may differ when it is resumed."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description="fixes the initial weights and the order of the data")] = 0
    tokens: Annotated[int, Field(gt=0, description="budget, tokens; rounded up to whole steps")] = 1_000_000
    batch_size: Annotated[int, Field(gt=0, lt=2**50, description="sequences of `context` tokens per step")] = 16
    accumulate: Annotated[int, Field(gt=0, description="micro-batches a step is split into; divides batch_size")] = 1
    optimizer: Annotated[
        Literal["adamw", "sgd", "muon"], Field(description="muon: hidden matrices; the rest AdamW")
    ] = "adamw"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, description="on matrices, not on gains")] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1, description="AdamW: decay of the mean of gradients")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="AdamW: decay of the mean of squares")] = 0.99
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD and Muon")] = 0.95
    clip: Annotated[float, Field(ge=0, description="largest norm of the gradient; 0: no clipping")] = 1.0
    nonfinite: Annotated[
        Literal["stop", "skip"], Field(description="a step whose loss or gradient is not finite: end, or leave it out")
    ] = "stop"
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the steps in which lr rises from 0")] = 0.05
    schedule: Annotated[Literal["cosine", "linear"], Field(description="shape of the decay")] = "cosine"
    decay: Annotated[float, Field(ge=0, le=1, description="share of the steps, the last, in which lr falls")] = 1.0
    final_lr: Annotated[float, Field(ge=0, le=1, description="lr at the end, as a share of the peak")] = 0.1
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Field(description="auto: autocast to bf16 where it is fast, to fp16 on a GPU without bf16, else fp32"),
    ] = "auto"
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Field(description="auto: the first that there is")] = (
        "auto"
    )
    compile: Annotated[
        bool, Field(description="torch.compile the loss for training steps: over thousands of them, it pays")
    ] = False
    threads: Annotated[
        int, Field(ge=0, le=1024, description="CPU threads of a run; 0: all, or one per run of a study")
    ] = 0
    log_every: Annotated[int, Field(gt=0, description="steps between two records")] = 10
    eval_every: Annotated[
        int,
        Field(
            ge=-1,
            description="steps between two scores of the validation set; 0: a tenth of the run; -1: score at the last "
            "step alone",
        ),
    ] = 0
    probes: Annotated[
        int,
        Field(
            ge=0,
            description="measure inside the network at the last step, at this factor before it, and so on, and at "
            "step 0; 0: never",
        ),
    ] = 30
    checkpoint_every: Annotated[int, Field(gt=0, description="steps between two checkpoints")] = 500
    keep: Annotated[int, Field(gt=0, description="checkpoints kept, the newest")] = 2

    def __post_init__(self):
        if self.probes == 1:
            raise UserError(
                "train.probes = 1: steps that grow by a factor of 1 never end; take 2 or more, or 0 for none."
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size = {self.batch_size} does not split into accumulate = {self.accumulate} equal parts."
            )


@dataclass(frozen=True, config=STRICT)
class WandbConfig:
    """Where wandb mirrors a run. It obeys WANDB_MODE before `mode`."""

    mode: Annotated[
        Literal["auto", "online", "offline", "disabled"],
        Field(description="auto: online where you are logged in, else offline"),
    ] = "auto"
    project: Annotated[str, Field(description="wandb project")] = "actgpt"
    group: Annotated[str, Field(description="wandb group; a study fills in its name")] = ""
    artifact: Annotated[
        Literal["none", "best"],
        Field(description="best: checkpoints go to wandb too, each of a lower val/loss than those before"),
    ] = "none"


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """One run, fully resolved."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.train.batch_size * self.model.context

    @property
    def micro_batch(self) -> int:
        """Sequences of a micro-batch. Scores take as many at a time, which memory holds in any case."""
        return self.train.batch_size // self.train.accumulate

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        # Rounded up in whole numbers: floats would be wrong for large budgets.
        return -(-self.train.tokens // self.tokens_per_step)

    def is_scored(self, step: int) -> bool:
        """Whether the validation set is scored after that many steps."""
        # By default ten scores a run, besides that of step 0.
        every = self.train.eval_every or -(-self.steps // 10)
        return step == self.steps or (every > 0 and step % every == 0)


SECTIONS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "wandb": WandbConfig}
WHERE = {
    "model.plugin",
    "model.plugin_sha256",  # a changed file is refused when a config is read
    "train.threads",
    "train.device",
    "train.compile",
    "train.keep",
    "wandb.mode",
    "wandb.project",
    "wandb.group",
    "wandb.artifact",
}  # not what is trained


def build(tree: Mapping[str, Any], source: str) -> RunConfig:
    """Return the run that a tree of sections describes.

    Raises:
        UserError: it lists every bad key and value, with the nearest valid name; `source` says where they stand.
    """
    return RunConfig(**build_sections(tree, SECTIONS, source))


def build_sections(tree: Mapping[str, Any], parts: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the config of each section that a tree holds, made by its dataclass in `parts`.

    Raises:
        UserError: as `build`.
    """
    made, lines = {}, []
    for section, values in tree.items():
        if section not in parts:
            lines.append(unknown("section", section, parts))
        elif not isinstance(values, Mapping):
            lines.append(f"{section} = {values!r}: a section is a table, [{section}].")
        else:
            try:
                made[section] = parts[section](**values)
            except ValidationError as error:
                lines += [explain(problem, section, parts[section]) for problem in error.errors()]
    if lines:
        raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines))
    return made


def explain(problem: Any, section: str, part: Any) -> str:
    """Return one line for one of pydantic's problems: the key, what was given, what is allowed, the nearest name."""
    path = [section, *map(str, problem["loc"])]
    key, given, kind = ".".join(path), problem["input"], problem["type"]
    if kind == "unexpected_keyword_argument":
        return unknown(f"key in [{section}]", path[-1], part.__dataclass_fields__)
    if kind == "literal_error":
        literal, *_ = get_args(part.__dataclass_fields__[path[1]].type)  # of Annotated[Literal[...], Field]
        return f"{key}: " + unknown(path[-1], str(given), get_args(literal))
    if kind == "missing":
        return f"{key}: is missing."
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    return f"{key} = {given!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: there is no such file, it is not TOML, or it has a control character.
    """
    try:
        tree = tomllib.loads(path.read_bytes().decode())
        _check_characters(tree)
        return tree
    except FileNotFoundError:
        slashed = Path(str(path).replace("\\", "/"))
        if slashed.is_file():
            raise UserError(f"no such file: {path}. Did you mean {slashed}?") from None
        others = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise UserError(unknown("config file", str(path), others) if others else f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None


def _check_characters(value: Any, place: str = "") -> None:
    """Raise `ValueError` for text with a control character, which on a terminal could do anything."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_characters(key, place)
            _check_characters(part, f"{place}.{key}".strip("."))
    elif isinstance(value, list):
        for part in value:
            _check_characters(part, place)
    elif isinstance(value, str) and (found := CONTROL.search(value)):
        raise ValueError(f"{place} has the control character {found[0]!a}. Remove it.")


def tree(config: RunConfig) -> dict[str, Any]:
    """Return the sections as plain data, the inverse of `build`."""
    return dataclasses.asdict(config)


def to_toml(config: RunConfig) -> str:
    """Return the fully resolved config as TOML; read back, it gives an equal one."""
    return tomli_w.dumps(tree(config))


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Return one line for each key in which what is trained differs; where it runs does not count."""
    lines = []
    for section, values in tree(new).items():
        before = tree(old)[section]
        for key, value in values.items():
            if before[key] != value and f"{section}.{key}" not in WHERE:
                lines.append(f"{section}.{key}: {before[key]!r} in the folder, {value!r} asked for")
    return lines
