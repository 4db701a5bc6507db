"""What benchmarks share: works timed in turn, figures with their spread and as JSON, the machine's limits."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.layers import linear
from training.device import pick_precision

ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Output:
    """What every benchmark takes."""

    json: Path | None = None
    """where to write the figures"""


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long one call takes."""
    began = clock()
    work()
    return clock() - began


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Call every work once to warm up, then all of them in turn; return the seconds of each, by round.

    By `time.process_time` other processes disturb least.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, clock))
    return times


@contextmanager
def process(module: str, *arguments: str, tree: Path = ROOT) -> Iterator[Callable[[], str]]:
    """Yield what has a process of its own take one turn of the work that `work` of a benchmark returns.

    Each side has its process, as it would have one where it is used: in one for all they change each other's speed. The
    code is that of a tree, the benchmarks are those of this one.
    """
    # -P: else what lies in the current folder would come before either
    code = f"import rounds, {module}; rounds.serve({module}.work(*{arguments!r}))"
    command = [sys.executable, "-P", "-c", code]
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'benchmarks'}"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        asked, told = server.stdin, server.stdout
        assert asked is not None
        assert told is not None

        def turn() -> str:
            print(file=asked, flush=True)
            return told.readline() or sys.exit(f"the process of {module}.work{arguments} has ended")

        yield turn


def serve(turn: Callable[[], object]) -> None:
    """Take one turn for each line that comes in, and answer with a line."""
    for _ in sys.stdin:
        turn()
        print(flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, lowest and highest of a figure's rounds, and their number."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "n": len(values)}


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return the spread of one / other, round by round."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def say(what: str, figures: Mapping[str, float], form: str = ".2f") -> None:
    """Print a figure with its spread."""
    median, lowest, highest = (format(figures[key], form) for key in ("median", "lowest", "highest"))
    print(f"{what}: {median} ({lowest} to {highest})", flush=True)


def auto_dtype() -> torch.dtype:
    """Return what a run's matrices are multiplied in on this processor."""
    return torch.bfloat16 if pick_precision("auto", torch.device("cpu")) == "bf16" else torch.float32


def gemm_flops(dtype: torch.dtype, size: int = 2048) -> float:
    """Return the peak of a square matrix product on this machine, FLOP/s: the best of several, by torch and by ours."""
    a, b = torch.randn(2, size, size).to(dtype)
    times = in_turn({"torch": lambda: torch.nn.functional.linear(a, b), "ours": lambda: linear(a, b)}, rounds=10)
    return 2 * size**3 / min(*times["torch"], *times["ours"])


def copy_bandwidth(megabytes: int = 256) -> float:
    """Return how many bytes a second a copy reads and writes: the best of several."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(in_turn({"copy": lambda: target.copy_(source)}, rounds=10)["copy"])


def machine() -> dict[str, Any]:
    """Measure this machine's limits, print them and return them, with what it is."""
    figures = {
        "gemm_bf16_flops": gemm_flops(torch.bfloat16),
        "gemm_fp32_flops": gemm_flops(torch.float32),
        "copy_bytes_per_s": copy_bandwidth(),
    }
    print("  ".join(f"{name} {value / 1e9:.0f} G" for name, value in figures.items()), flush=True)
    return figures | {"torch": torch.__version__, "threads": torch.get_num_threads(), "platform": platform.platform()}


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON, if a path is given."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
