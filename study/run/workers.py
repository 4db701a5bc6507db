"""Several commands that train one study: who may do what is settled by locks in the study's folder.

- `.lock` is shared by all commands that train the study. A command that has it alone may change the plan, or write the
  report.
- `.claims/RUN` is held by the command that trains the run.
- `.failed/RUN` notes that a run has failed, so that the other commands leave it alone.

The system frees the locks of a process that ends, however it ends. So a run of a killed command is free for the others.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from filelock import BaseFileLock, FileLock, Timeout

from errors import UserError
from files import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class StudyLock:
    """The lock of a study's folder, which is made where it is missing. Use it as a context.

    Where the system or the file system has no such locks, every command has it alone.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = (folder / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"--out {folder}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def share(self) -> None:
        """Share the lock with the other commands; wait while one has it alone."""
        if fcntl:
            with suppress(OSError):
                fcntl.flock(self.file, fcntl.LOCK_SH)

    def take_alone(self) -> bool:
        """Take the lock alone, and return whether that was possible. If not, this command has no share in it either."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some file systems answer with the second
            return False
        except OSError:  # the file system has no locks
            pass
        return True


def claim(run: Path) -> BaseFileLock | None:
    """Claim a run by its folder, until the lock that is returned is released; None while another command has it.

    Raises:
        UserError: the disk is full or read-only.
    """
    path = run.parent / ".claims" / run.name
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
    return lock


@contextmanager
def claimed(run: Path) -> Iterator[bool]:
    """Claim a run for a while, and yield whether that was possible; as `claim`."""
    lock = claim(run)
    try:
        yield lock is not None
    finally:
        if lock:
            lock.release()


def has_failed(run: Path) -> bool:
    """Whether a run has failed since its study was last left by all commands."""
    return _failure(run).exists()


def note_failure(run: Path) -> None:
    """Note for the other commands that a run has failed."""
    with suppress(OSError):  # on a full disk, another command may try it once more
        _failure(run).parent.mkdir(exist_ok=True)
        _failure(run).touch()


def forget_failures(study: Path) -> None:
    """Let the failed runs of a study be tried again."""
    for folder in (study, study / "tune"):
        shutil.rmtree(folder / ".failed", ignore_errors=True)


def _failure(run: Path) -> Path:
    return run.parent / ".failed" / run.name
