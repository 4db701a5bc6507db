"""A run, or a stack of runs, in a process of its own: all that it prints goes to log.txt."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from errors import Interrupted, UserError
from model.plugin import load_plugin
from training.config import RunConfig
from training.loop import train, train_stack

ORPHAN_SECONDS = 60.0  # in which a run whose study was killed saves and releases its folder


def train_with_log(runs: Mapping[Path, RunConfig]) -> str:
    """Train one run, or several as a stack, by their folders. All that it prints goes to log.txt of the first folder.

    The reason of a failure goes there too: a message for a mistake or for numbers that are not finite, and a traceback
    for any other fault.

    Returns:
        The reason of a failure that could not be written there, as on a full disk; else nothing.
    """
    folder, config = next(iter(runs.items()))
    reason = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _output_to(folder / "log.txt"):
            try:
                if config.model.plugin:
                    load_plugin(Path(config.model.plugin))
                if len(runs) > 1:
                    train_stack(runs, ORPHAN_SECONDS)
                else:
                    train(config, folder, ORPHAN_SECONDS)
            except (UserError, FloatingPointError, Interrupted) as error:
                reason = str(error)
            except Exception:
                reason = traceback.format_exc()
            print(reason, end="\n" if reason else "", flush=True)
    except OSError as fault:
        return reason.strip().rpartition("\n")[2] or f"{folder} cannot be written ({fault})"
    return ""


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process prints to the end of a file, what torch and other libraries of C++ print too."""
    streams = [sys.stdout, sys.stderr]
    before = [os.dup(stream.fileno()) for stream in streams]
    with path.open("ab") as log:
        for stream in streams:
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    try:
        yield
    finally:
        for stream, old in zip(streams, before, strict=True):
            with suppress(OSError):  # the disk is full
                stream.flush()
            os.dup2(old, stream.fileno())
            os.close(old)
