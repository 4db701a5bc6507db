"""A run is a folder: who may write to it, and what it holds already."""

import contextlib
import json
import os
import platform
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from errors import UserError
from files import PARTIAL, write_file
from training.config import RunConfig, build, differences, read_toml, to_toml, tree

CHOOSE = "Choose another --out."
HOLDER = ".holder"  # says who writes here; beside the lock, since who waits for that one empties it
OWN_FILES = {".lock", HOLDER, PARTIAL, "log.txt"}  # may be there before the run is
NEEDED = ("val/loss", "val/perplexity", "val/bits_per_byte")  # what a finished run has for certain


@contextmanager
def open_run(folder: Path, config: RunConfig, patience: float = 0.0) -> Iterator[dict[str, Any] | None]:
    """Hold the folder of a run while it is written; yields the summary if the run is finished already.

    `patience` is how long to wait, seconds, for another process that holds it.

    Raises:
        UserError: another process holds it, it is something else, or it holds a run with another config.
    """
    _check_free(folder)
    with hold(folder, patience):
        if has_begun(folder):  # one that never did leaves no trace of its config
            if lines := differences(read_run_config(folder), config):
                raise UserError("\n  ".join([f"{folder} holds a run with another config:", *lines, CHOOSE]))
        else:
            write_file(folder / "config.toml", to_toml(config))
        yield read_summary(folder)


def _check_free(folder: Path) -> None:
    """Raise `UserError` if a folder is neither that of a run nor one for a run to be."""
    config = folder / "config.toml"
    if not config.exists() and folder.is_dir() and {path.name for path in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a run (it has no config.toml). {CHOOSE}")
    if not config.exists() or has_begun(folder):
        return
    known, tables = tree(RunConfig()), as_written(config) or {}
    parts = [(tables.get(name), part) for name, part in known.items()]
    if not all(isinstance(own, dict) and own.keys() <= part.keys() for own, part in parts):
        raise UserError(f"{config} is not of a run, and the config of this one would take its place. {CHOOSE}")


def as_written(path: Path) -> dict[str, Any] | None:
    """Return the tables of a TOML file whose text is as this project writes it, None of one that somebody wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
        return tables if tomli_w.dumps(tables) == text else None
    except (OSError, ValueError, RecursionError):
        return None


def has_begun(folder: Path) -> bool:
    """Whether a folder holds anything that a run has found out."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "summary.json", "checkpoints"))


@contextmanager
def hold(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Make a folder and keep other processes from writing to it, with a note for them on who does.

    Raises:
        UserError: it cannot be made or written, or another process holds it for longer than `patience` seconds.
    """
    lock, holder = FileLock(folder / ".lock", timeout=patience), folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise UserError(f"{folder} is being written by {who}; wait for it. {CHOOSE}") from None
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}.") from None
    try:
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        with contextlib.suppress(OSError):  # a courtesy: a disk that is full says so where it matters
            holder.write_text(f"process {os.getpid()} on {platform.node()} since {now}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that has become read-only
            holder.unlink()
        lock.release()


def read_run_config(folder: Path) -> RunConfig:
    """Return the config of a run folder.

    Raises:
        UserError: it is not a run folder.
    """
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.toml). Runs are made by train.py.")
    return build(read_toml(folder / "config.toml"), str(folder / "config.toml"))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the final figures of a finished run, None for an unfinished one."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or damaged: the run writes it again
        return None
    if not isinstance(summary, dict):
        return None
    complete = all(isinstance(summary.get(key), int | float) for key in NEEDED)
    return summary if complete or summary.get("status") == "diverged" else None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `metrics.jsonl`; none where the file is missing.

    A last line that a killed process cut short is left out.

    Raises:
        UserError: any other line is damaged.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged: {error}.") from error
        # Every reader relies on the place of a record in its run.
        if not isinstance(record, dict) or not all(isinstance(record.get(key), int) for key in ("step", "tokens")):
            raise UserError(f"{path}, line {number} is damaged: it is not a record with step and tokens.")
        records.append(record)
    return records
