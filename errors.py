"""How a command ends other than well: the user's mistake, a signal; and the exit codes of the doors."""

import difflib
import errno
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# what torch and NumPy say of a tensor that no memory holds: torch has no error of its own for it on a CPU
TOO_LARGE = re.compile(
    "allocate memory|not enough memory|out of memory|size calculation overflowed|Overflow when unpacking|"
    "array is too big|Maximum allowed dimension"
)


class UserError(ValueError):
    """A mistake in the user's call. The doors print its message and exit with code 2, without a traceback."""


class Interrupted(Exception):
    """A run or study stopped by a signal after saving; `code` is the exit code, 128 + signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.code = 128 + signum


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: what was given, the nearest valid name, and all that is allowed."""
    names = list(allowed)
    nearest = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {given!r}.{hint} Allowed: {', '.join(names)}."


@contextmanager
def explained(what: str, way_out: str, where: Path | None = None) -> Iterator[None]:
    """Turn a fault of the file system (no permission, no space) into a `UserError`: what failed, why, the way out.

    `where` is a folder that may be full.
    """
    try:
        yield
    except OSError as fault:
        free = ""
        if where and where.exists() and fault.errno in (errno.ENOSPC, errno.EDQUOT):
            free = f"; {shutil.disk_usage(where).free:,} bytes are free there"
        raise UserError(f"{what} ({fault}{free}): {way_out}.") from fault


def _mistake(fault: Exception) -> str:
    """Return what to say of a fault that lies in the user's call; nothing of one of ours."""
    if isinstance(fault, UserError):
        return str(fault)
    if isinstance(fault, OSError) and fault.errno == errno.ENAMETOOLONG:
        return f"{fault.filename}: a name that is longer than the file system allows. Choose a shorter one."
    if isinstance(fault, UnicodeEncodeError):
        return f"{fault.object[fault.start : fault.end]!a} in a name is not {fault.encoding.upper()}. Set PYTHONUTF8=1."
    if isinstance(fault, MemoryError) or TOO_LARGE.search(str(fault)):
        reason = str(fault).partition("\n")[0]
        return f"not enough memory ({reason}). Take a smaller model, a smaller batch or fewer tokens."
    return ""


def door(main: Callable[[], int | None]) -> int:
    """Call the main function of a door and return its exit code: 2 for the user's mistake, 130 or 143 for a signal.

    A fault keeps its traceback and exits with 1, as do numbers that are not finite and output that nobody reads,
    without one. NO_COLOR is honoured (https://no-color.org). What stdout cannot encode is printed as a question mark.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # neither closed nor a notebook's; stderr never fails
        sys.stdout.reconfigure(errors="replace")
        os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:replace"  # in the processes of a study too
    if os.environ.get("NO_COLOR"):  # rich reads it, tyro has to be told
        import tyro

        tyro._experimental_options["ansi_codes"] = False
    try:
        code = main() or 0
        if sys.stdout:
            sys.stdout.flush()  # here, where a reader that has gone is said
        return code
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):  # as rich ends
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        gone = "the reader of the output has gone, as after | head; a run or study goes on with the same command"
        print(f"stopped: {gone}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    except Exception as fault:
        if not (message := _mistake(fault)):
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
