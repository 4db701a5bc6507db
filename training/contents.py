"""What the folder of a run holds: a schema for each file, and the one way to read it.

Whatever does not fit ends as one message, `files.own_file`. The tensors of a checkpoint are in training/checkpoint.py,
the tokenizer is in data/tokenizer.py.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeFloat, TypeAdapter, with_config
from typing_extensions import TypedDict

from errors import STRICT, UserError
from files import WRITTEN_AGAIN, check_sha256, own_file, sha256_of
from training.config import RunConfig, build, differences, read_toml
from training.wandb_mirror import ID

RUN_FOLDER = "a run folder holds config.toml and metrics.jsonl, a study folder holds one such folder per run"
SEALED = ("config.toml", "metrics.jsonl", "val_windows.npy")  # their SHA-256 is in the summary of a finished run
# The figures of a split, by the end of their metric names, with their units. Each is a field of `evaluate.Score`.
SCORES = {"loss": "nats/token", "perplexity": "perplexity of a token", "bits_per_byte": "bits/byte"}
STRICT_JSON = ConfigDict(strict=True, allow_inf_nan=False)  # for files that hold more numbers than a schema names
INT64 = Field(ge=-(2**63), le=2**63 - 1)  # a larger integer is no figure of ours, and no float may hold it
Number = Annotated[int, INT64] | float | None  # null stands for NaN and infinity
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Scalar = int | float | bool | str | None


@with_config(STRICT_JSON)
class Record(TypedDict, extra_items=Number):
    """A line of metrics.jsonl."""

    step: Count
    tokens: Count
    time: NonNegativeFloat


@with_config(STRICT)
class State(TypedDict):
    """state.json of a checkpoint: what an exact resume needs beside tensors, records and windows."""

    step: Count
    time: NonNegativeFloat
    train_seconds: NonNegativeFloat
    skipped: Count
    wandb_id: Annotated[str, Field(pattern=f"^{ID.pattern}$")] | None
    wandb_best: Number
    scaler: NotRequired[dict[str, Number]]  # of the loss in fp16; empty in other precisions
    config: dict[str, dict[str, Any]]
    environment: dict[str, Scalar]
    fingerprint: str


class Histogram(TypedDict):
    """The bins of a gate's outputs; one edge more than counts."""

    edges: list[int | float]
    counts: list[int | float]


# Names with a slash cannot be written as fields of a class.
Summary = TypedDict(
    "Summary",
    {
        "status": Literal["finished", "diverged"],
        "val/loss": Number,
        "val/perplexity": Number,
        "val/bits_per_byte": Number,
        "activation": NotRequired[str],
        "gated": NotRequired[bool],
        "steps": NotRequired[Count],
        "data/fingerprint": NotRequired[str],
        "sample/prompt": NotRequired[str],
        "sample/text": NotRequired[str],
        "environment": NotRequired[dict[str, Scalar]],
        "gate/histogram": NotRequired[dict[str, Histogram]],
        "sha256": NotRequired[dict[Literal["summary.json", "config.toml", "metrics.jsonl", "val_windows.npy"], str]],
    },
    extra_items=Number,
)

RECORD, STATE, SUMMARY = TypeAdapter(Record), TypeAdapter(State), TypeAdapter(with_config(STRICT_JSON)(Summary))


def read_tree(folder: Path) -> dict[str, Any]:
    """Return the sections of a run's config.toml as they stand. The activation may be one that is not loaded here.

    Raises:
        UserError: it is not a run folder, or the file is damaged or foreign.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.toml): {RUN_FOLDER}.")
    with own_file(path, 'Restore it. Each checkpoint holds its values in state.json, under "config".'):
        tree = read_toml(path)
        checked, model = tree, tree.get("model")
        # A report can show runs of a plugin without the plugin, so that any name is allowed here.
        if isinstance(model, dict) and isinstance(model.get("activation"), str):
            checked = tree | {"model": model | {"activation": "gelu"}}
        build(checked, str(path))
        # What every table needs has to stand in the file itself, since a default may have changed.
        _ = tree["model"]["activation"], tree["train"]["tokens"]
    return tree


def read_config(folder: Path) -> RunConfig:
    """Return the config of a run folder.

    Raises:
        UserError: as `read_tree`, or its activation is not in the registry.
    """
    return build(read_tree(folder), str(folder / "config.toml"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `metrics.jsonl`; none where the file is missing.

    A last line that a killed process cut short is left out.

    Raises:
        UserError: a line is damaged or foreign, or they are not in the order of steps.
    """
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        with own_file(path, f"Line {number} is the first that is wrong. {WRITTEN_AGAIN}"):
            record = RECORD.validate_json(line)
            # A copied or swapped line is valid by itself; curves and resumes rely on the order.
            if records and record["step"] <= records[-1]["step"]:
                raise ValueError(f"step {record['step']} follows step {records[-1]['step']}")
            records.append({**record})
    return records


def read_windows(path: Path) -> np.ndarray:
    """Return the losses of a `val_windows.npy`, one for each whole window of the validation split.

    Raises:
        UserError: the file is damaged or foreign.
    """
    with own_file(path, WRITTEN_AGAIN):
        # Nothing is ever unpickled. A mapped file cannot claim more numbers than it holds.
        windows = np.load(path, mmap_mode="r", allow_pickle=False)
        if windows.ndim != 1 or windows.dtype.kind != "f" or not np.isfinite(windows).all():
            raise ValueError(f"{windows.dtype} of the shape {windows.shape} is not a list of losses")
        return np.array(windows)


def read_state(path: Path, config: RunConfig) -> dict[str, Any]:
    """Return the state.json of a verified checkpoint of a run with that config.

    Raises:
        Damaged: it is foreign, or the run's config.toml has changed since.
    """
    with own_file(path / "state.json"):
        state = STATE.validate_json((path / "state.json").read_bytes())
        if path.name != f"step-{state['step']:08d}" or state["step"] > config.steps:
            raise ValueError(f"step {state['step']} is not the folder's, or beyond the last step, {config.steps}")
        if lines := differences(build(state["config"], "config"), config):
            raise ValueError(f"its config is not that of config.toml, {'; '.join(lines)}")
    return {**state}


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the final figures of a finished run, None for an unfinished one.

    Raises:
        UserError: the summary, or a file whose SHA-256 is in it, is damaged or foreign.
    """
    path = folder / "summary.json"
    # A run writes its summary last, so that a run without one goes on.
    if not path.exists():
        return None
    with own_file(path, WRITTEN_AGAIN):
        summary = {**SUMMARY.validate_json(path.read_bytes())}
        # A run that finished before summaries had hashes can still be reported.
        hashes = summary.get("sha256", {})
        changed = bool(hashes) and hashes["summary.json"] != _hash(summary)
        if changed or (summary["status"] == "finished" and None in [summary[f"val/{score}"] for score in SCORES]):
            raise ValueError("its figures have changed since it was written, or the validation loss is missing")
    for name in hashes.keys() & SEALED:
        check_sha256(folder / name, hashes[name], "summary.json", WRITTEN_AGAIN)
    return summary


def read_finished(folder: Path) -> dict[str, Any] | None:
    """Return the final figures of a run that has nothing left to do, None for an unfinished one.

    Raises:
        UserError: as `read_summary`, or one of the other files that reports read is damaged or foreign.
    """
    summary = read_summary(folder)
    if summary:
        read_records(folder / "metrics.jsonl")
        read_windows(folder / "val_windows.npy")
    return summary


def intact_summary(folder: Path) -> dict[str, Any] | None:
    """Return the final figures of a run that has nothing left to do: it is finished, and its files are intact."""
    with suppress(UserError):
        return read_finished(folder)
    return None


def seal(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a summary with the SHA-256 of the files of its run that reports read, and of its own figures."""
    hashes = {name: sha256_of(folder / name) for name in SEALED}
    return summary | {"sha256": hashes | {"summary.json": _hash(summary)}}


def _hash(summary: dict[str, Any]) -> str:
    """Return the SHA-256 of all figures of a summary."""
    figures = {key: value for key, value in summary.items() if key != "sha256"}
    # Sorted, so that the hash does not depend on the order in which a reader returns the keys.
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()
