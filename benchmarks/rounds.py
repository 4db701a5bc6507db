"""What benchmarks share: works timed in turn, ratios with their spread, the machine's limits, figures as JSON."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from model.layers import linear

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Call every work once to warm up, then all of them in turn; return the seconds of each, by round."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """Return the median, lowest and highest of one / other, round by round."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "n": len(ratios)}


def say(what: str, figures: Mapping[str, float]) -> None:
    """Print a ratio with its spread."""
    print(f"{what}: {figures['ratio']:.2f} ({figures['lowest']:.2f} to {figures['highest']:.2f})", flush=True)


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
