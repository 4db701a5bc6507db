"""What the benchmarks share: work that is timed in turn, processes for it, and ratios with their spread."""

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

Work = Callable[[], object]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def run_alone(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Return what a function returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def run_command(command: list[str], folder: Path) -> tuple[float, str]:
    """Run a command in a folder; return how long it took, seconds, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, done.stdout


class OwnProcess:
    """A process that calls `make(*arguments)` once, and then the work that it returns whenever this object is called.

    Sides that shared one process would change each other's speed, by the state of its memory.
    """

    def __init__(self, make: Callable[..., Work], *arguments: object):
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare, initargs=(make, arguments))

    def __call__(self) -> None:
        """Let the process do its work once."""
        self.pool.submit(_do_work).result()

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()


_works: list[Work] = []  # the one that this process has, if it is an OwnProcess


def _prepare(make: Callable[..., Work], arguments: Sequence[object]) -> None:
    _works.append(make(*arguments))


def _do_work() -> None:
    _works[0]()


def time_in_turn(
    works: Mapping[str, Work], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Call every work once to warm up, then all of them in turn. Return the seconds of each, one for each round.

    Other processes disturb `time.process_time` least.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = clock()
            work()
            seconds[name].append(clock() - started)
    return seconds


def ratio(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return one / other of each round."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def show(what: str, values: Sequence[float], form: str = ".2f") -> None:
    """Print the median, the lowest and the highest of a figure's rounds."""
    median, lowest, highest = (format(f(values), form) for f in (statistics.median, min, max))
    print(f"{what}: {median} ({lowest} to {highest}, n = {len(values)})", flush=True)


def compare(
    what: str, make: Callable[[Any], Work], ours: Sequence[object], others: Sequence[object], tokens: int, rounds: int
) -> None:
    """Print the tokens/s of each side, timed in turn, and the speed of each of ours against each of the others.

    `make(side)` returns a turn of `tokens` tokens; it is called in a process of the side's own.
    """
    processes = {str(side): OwnProcess(make, side) for side in [*ours, *others]}
    seconds = time_in_turn(processes, rounds)
    for name, process in processes.items():
        process.close()
        print(f"{what}  {name:20s} {tokens / statistics.median(seconds[name]):9,.0f} tokens/s")
    for other in others:
        for side in ours:
            show(f"{what}  {side} against {other}", ratio(seconds[str(other)], seconds[str(side)]))
