"""A run is a folder: who may write to it, and what it holds already."""

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import Damaged, UserError
from files import PARTIAL
from training.config import RunConfig, differences
from training.contents import read_config, read_finished

CHOOSE = "Choose another --out."
HOLDER = ".holder"  # says who writes here; beside the lock, since who waits for that one empties it
OWN_FILES = {".lock", HOLDER, PARTIAL, "log.txt"}  # may be there before the run is


@contextmanager
def open_run(folder: Path, config: RunConfig, patience: float = 0.0) -> Iterator[dict[str, Any] | None]:
    """Hold the folder of a run while it is written; yields the summary if the run is finished and intact.

    `patience` is how long to wait, seconds, for another process that holds it.

    Raises:
        UserError: another process holds it, it is something else, or it holds a run with another config.
    """
    path = folder / "config.toml"
    if not path.exists() and folder.is_dir() and {entry.name for entry in folder.iterdir()} - OWN_FILES:
        raise UserError(f"{folder} exists and is not a run (it has no config.toml). {CHOOSE}")
    with hold(folder, patience):
        # A run writes its config as soon as its data are there. A config.toml that no run wrote is refused here.
        if path.exists() and (lines := differences(read_config(folder), config)):
            raise UserError("\n  ".join([f"{folder} holds a run with another config:", *lines, CHOOSE]))
        try:
            summary = read_finished(folder)
        except Damaged as problem:
            print(f"warning: {problem} It is made from the last checkpoint.")
            summary = None
        yield summary


@contextmanager
def hold(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Make a folder and keep other processes from writing to it, with a note for them on who does.

    Raises:
        UserError: it cannot be made or written, or another process holds it for longer than `patience` seconds.
    """
    # The system frees the lock of a process that is killed, so that no lock is ever left behind.
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
