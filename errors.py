"""How a command ends other than well: mistakes of the user, signals, and the exit codes of the doors."""

import difflib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from pydantic import ConfigDict

# Of every config: an unknown key, a value of another type (4 is an int, "4", 4.0 and true are not), NaN and infinity
# are mistakes.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# torch raises a plain RuntimeError where the CPU's memory ends. These texts begin the two that its allocator raises.
CPU_ALLOCATOR = ("[enforce fail at alloc_cpu.cpp", "Storage size calculation overflowed")


# What people write who come from elsewhere. By its letters alone, gpu is nearest to cpu.
OTHER_WORDS = {"gpu": "cuda", "off": "disabled", "adam": "adamw", "float16": "fp16", "float32": "fp32", "swish": "silu"}


class UserError(ValueError):
    """A mistake in the user's call. The doors print its message and exit with code 2, without a traceback."""


class Damaged(UserError):
    """A file of this project whose content cannot be believed; an earlier checkpoint may take its place."""


class Interrupted(Exception):
    """A run or study stopped by a signal after saving; `code` is the exit code, 128 + signal."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.code = 128 + signum


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: what was given, the nearest valid name, and all that is allowed."""
    names = list(allowed)
    if OTHER_WORDS.get(given.lower()) in names:
        nearest = [OTHER_WORDS[given.lower()]]
    else:
        nearest = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {given!r}.{hint} Allowed: {', '.join(names)}."


def is_memory_fault(fault: BaseException) -> bool:
    """Return whether an exception means that memory ran out. Its type decides, since any text can hold these words."""
    # A door that has not loaded torch cannot have got an error from it, and importing torch takes seconds.
    torch = sys.modules.get("torch")
    if isinstance(fault, MemoryError) or (torch and isinstance(fault, torch.OutOfMemoryError)):
        return True
    return type(fault) is RuntimeError and str(fault).startswith(CPU_ALLOCATOR)


def fault_of_plugin(fault: BaseException) -> str:
    """Return where a user's plugin raised an exception, as `acts.py, line 7: ...`, or an empty string."""
    plugin = sys.modules.get("model.plugin")
    files = {str(path) for path in plugin.loaded} if plugin else set()
    for frame in reversed(traceback.extract_tb(fault.__traceback__)):
        if frame.filename in files:
            return f"{frame.filename}, line {frame.lineno}: {type(fault).__name__}: {fault}"
    return ""


def describe_mistake(fault: Exception) -> str:
    """Return the message for an error that the user can mend, and an empty string for a bug of this project."""
    if isinstance(fault, UserError):
        return str(fault)
    if place := fault_of_plugin(fault):
        return f"the plugin failed in {place}"
    if isinstance(fault, OSError) and fault.errno == errno.ENAMETOOLONG:
        return f"{fault.filename}: the name is longer than the file system allows. Choose a shorter one."
    if isinstance(fault, UnicodeEncodeError):
        return f"{fault.object[fault.start : fault.end]!a} in a name is not {fault.encoding.upper()}. Set PYTHONUTF8=1."
    if is_memory_fault(fault):
        reason = str(fault).partition("\n")[0] or type(fault).__name__
        return f"not enough memory ({reason}). Use a smaller model, a smaller batch or fewer tokens."
    return ""


def door(main: Callable[[], int | None]) -> int:
    """Call the main function of a door, print how it failed if it did, and return the exit code.

    0: done. 1: a loss or gradient is not finite, or nobody reads the output. 2: a mistake of the user. 130 or 143: a
    signal. Any other exception is a bug: it is raised, so that Python prints its traceback and exits with 1.

    NO_COLOR is honoured (https://no-color.org). Characters that stdout cannot encode are printed as question marks.
    """
    # Threads that wait for each other spin, which on a busy machine costs half of the speed (benchmarks/threads.py).
    # OpenMP reads this when torch is imported. What the user has set stays.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # stdout may be closed, or replaced by a notebook. stderr replaces characters by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
        # The processes of a study inherit the setting.
        os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:replace"
    if os.environ.get("NO_COLOR"):  # rich reads the variable itself, tyro does not
        import tyro

        tyro._experimental_options["ansi_codes"] = False
    try:
        code = main() or 0
        if sys.stdout:
            sys.stdout.flush()  # a reader that has gone is noticed here, and not when Python exits
        return code
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BrokenPipeError, SystemExit) as end:
        # rich turns a broken pipe into SystemExit. Every other SystemExit, as tyro's after --help, goes on.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        # Python flushes stdout once more when it exits, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        gone = "nobody reads the output any more, as after | head. The same command resumes a run or study."
        print(f"stopped: {gone}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    except Exception as fault:
        message = describe_mistake(fault)
        if not message:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
