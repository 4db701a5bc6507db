"""A run is a folder: who may write to it, and what it holds already."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import UserError
from training.config import RunConfig, build, differences, read_toml, to_toml

CHOOSE = "Choose another --out."
PARTIAL = ".partial"  # what a process that died was writing
OWN_FILES = {".lock", PARTIAL, "log.txt"}  # may be there before the run is


@contextmanager
def open_run(folder: Path, config: RunConfig, patience: float = 0.0) -> Iterator[dict[str, Any] | None]:
    """Hold the folder of a run while it is written; yields the summary if the run is finished already.

    `patience` is how long to wait, seconds, for another process that holds it.

    Raises:
        UserError: another process holds it, it is something else, or it holds a run with another config.
    """
    if folder.is_dir() and not (folder / "config.toml").exists() and {p.name for p in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a run (it has no config.toml). Choose another --out.")
    with hold(folder, patience):
        if (folder / "metrics.jsonl").exists():  # a run that never began leaves no trace of its config
            if lines := differences(read_run_config(folder), config):
                raise UserError("\n  ".join([f"{folder} holds a run with another config:", *lines, CHOOSE]))
        else:
            write_whole(folder / "config.toml", to_toml(config))
        yield read_summary(folder)


@contextmanager
def hold(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Make a folder and keep other processes from writing to it.

    Raises:
        UserError: it cannot be made or written, or another process holds it for longer than `patience` seconds.
    """
    lock = FileLock(folder / ".lock", timeout=patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being written by another process; wait for it. {CHOOSE}") from None
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, in a folder that this process holds."""
    partial = path.with_name(PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged: the run writes it again
        return None
