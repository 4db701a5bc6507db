"""Writes files and folders whole: after a full disk or a killed process, the old content or the new is there."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from errors import Damaged, UserError

PARTIAL = ".partial"  # the name, or the end of the name, of what a process is writing; a killed process leaves it
GO_ON = "Then the same command goes on from the last checkpoint."
WRITTEN_AGAIN = "The train.py command of this run writes it again."


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, listed_in: str, way_out: str = "") -> None:
    """Raise `Damaged` unless a file is there and has the SHA-256 that another file lists for it; as `own_file`."""
    with own_file(path, way_out):
        if sha256_of(path) != expected:
            raise ValueError(f"its SHA-256 is not the one in {listed_in}")


@contextmanager
def own_file(path: Path, way_out: str = "") -> Iterator[None]:
    """Turn whatever fails while a file of this project is read into one message that names the file.

    Raises:
        Damaged: the file is missing, damaged, or from elsewhere. `way_out` is a sentence that says what to do.
    """
    try:
        yield
    except Exception as fault:
        # The message names the file already.
        reason = str(fault).replace(str(path), "it")
        if isinstance(fault, ValidationError):
            problem = fault.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            reason = f"{place}: {problem['msg']}" if place else problem["msg"]
        elif isinstance(fault, OSError):
            reason = fault.strerror or reason
        elif not isinstance(fault, ValueError):
            reason = f"{type(fault).__name__}: {reason}"
        end = f". {way_out}" if way_out else ""
        raise Damaged(f"{path} is damaged or was not written by this project: {reason.rstrip('.')}{end}") from fault


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, in a folder to which no other process writes.

    Raises:
        UserError: the disk is full or read-only. The old content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    # All files of a folder share this name, so that the next write removes what a killed process left.
    temporary = path.with_name(PARTIAL)
    with writing(path, len(data)):
        try:
            temporary.write_bytes(data)
            # Without this, a power cut after the renaming could leave an empty file.
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes the place of `path` at the end. A failure leaves `path` as it was.

    The parent folder must exist, and no other process may write this folder at the same time.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    try:
        temporary.mkdir()
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _flush_to_disk(entry)
        # A folder can only be renamed to a name that is free.
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # nothing is there unless something failed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file name beside `path` to write to; that file takes the place of `path` at the end.

    Several processes may replace the same file at once: each writes under a name of its own, and the last one stays.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")  # two machines may share the number of a process
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, need: int | None = None, way_out: str = GO_ON) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a `UserError`: the place, the bytes needed and free, the way out.

    Args:
        path: what is written.
        need: bytes that it takes, where that is known.
        way_out: a sentence that says what the user can do.
    """
    try:
        yield
    except FileNotFoundError as fault:
        raise UserError(f"{path} cannot be written: its folder was removed or renamed ({fault}).") from fault
    except OSError as fault:
        place = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
        free = shutil.disk_usage(place).free
        room = f"{free:,} bytes are free there"
        if need is not None:
            room = f"it needs {need:,} bytes, and {free:,} are free there"
        raise UserError(f"{path} cannot be written ({fault}): {room}. {way_out}") from fault


def _flush_to_disk(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of names."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    # Windows flushes only a file that is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
