"""How the time and memory of a training step grow with width, depth, context, vocabulary and batch, one at a time.

Each point in a process of its own, all threads, the precision that a run would choose; the median of five steps.

python benchmarks/cost.py [--json figures.json]
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from peers import our_step, random_tokens
from rounds import Output, auto_dtype, gemm_flops, save, seconds

from model.config import ModelConfig
from model.size import size
from training.config import RunConfig, TrainConfig
from training.device import keep_memory, peak_memory

BASE = {"d_model": 256, "n_layer": 6, "context": 256, "vocabulary": 4096, "batch_size": 16}
GRID = {
    "d_model": [64, 128, 256, 512, 1024],
    "n_layer": [2, 6, 12, 24],
    "context": [64, 256, 512, 1024],
    "vocabulary": [256, 4096, 16_384, 50_257],
    "batch_size": [4, 16, 64],
}


@dataclass(frozen=True)
class Command(Output):
    """Measure the grid."""

    inside: str = ""
    """set by the benchmark itself, for the process that measures one point"""


def measure(point: dict[str, int]) -> None:
    """Print one point's seconds a step, peak memory above the start and share of its precision's peak."""
    keep_memory()
    network = ModelConfig("gelu", point["n_layer"], 4, point["d_model"], point["context"])
    run = RunConfig(model=network, train=TrainConfig(batch_size=point["batch_size"], device="cpu"))
    tokens_N, cpu = random_tokens(point["vocabulary"]), torch.device("cpu")
    before = peak_memory(cpu)
    step = our_step(tokens_N, run, point["vocabulary"])
    step()
    times = [seconds(step) for _ in range(5)]
    flops = size(network, point["vocabulary"]).flops_per_token * run.tokens_per_step
    median = statistics.median(times)
    print(
        json.dumps(
            {
                "seconds": median,
                "spread": [min(times), max(times)],
                "tokens_per_s": run.tokens_per_step / median,
                "bytes": peak_memory(cpu) - before,
                "utilisation": flops / median / gemm_flops(auto_dtype()),
            }
        )
    )


def main() -> None:
    """Print a table of all points."""
    command = tyro.cli(Command, prog="python benchmarks/cost.py")
    if command.inside:
        measure(json.loads(command.inside))
        return
    rows: list[dict[str, Any]] = []
    for key, values in GRID.items():
        for value in values:
            point = BASE | {key: value}
            again = [sys.executable, __file__, "--inside", json.dumps(point)]
            found = json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout)
            rows.append(point | found)
            print(
                f"{key:10s} {value:6d}  {found['seconds'] * 1e3:8.0f} ms  {found['tokens_per_s']:9,.0f} tokens/s  "
                f"{found['bytes'] / 1e9:5.2f} GB  {found['utilisation']:.0%} of the peak",
                flush=True,
            )
    save(command.json, {"base": BASE, "rows": rows, "defaults": dataclasses.asdict(TrainConfig())})


if __name__ == "__main__":
    main()
