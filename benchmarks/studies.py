"""A study as one command against its runs as single commands, in turn: the quick study with two seeds, ten runs.

With --stacked N, in one process: N runs as one batched program (training/stack.py) against a single run.

python benchmarks/studies.py [--tokens 600000] [--rounds 3] [--stacked 32] [--device cuda]
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import tyro
from ours import quick_run
from rounds import ROOT, ratio, run_command, show

from training.config import read_toml
from training.loop import train, train_stack

SEEDS = (0, 1)
Device = Literal["auto", "cuda", "mps", "cpu"]


def time_in_folders(works: Mapping[str, Callable[[Path], object]], rounds: int) -> dict[str, list[float]]:
    """Call all works in turn, each with a new folder, and print and return the seconds of each, one for each round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                work(Path(folder))
                seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def compare_commands(tokens: int, device: str, rounds: int) -> None:
    """Print the time of one command for a study, its report included, against one command for each run."""
    flags = [f"--train.tokens={tokens}", f"--train.device={device}", "--wandb.mode=disabled"]
    activations = read_toml(ROOT / "configs" / "quick.toml")["model"]["activation"]

    def call(out: Path, *more: str) -> None:
        door = [sys.executable, "train.py", "configs/quick.toml", *flags, *more, f"--out={out}"]
        run_command(door, ROOT)

    def study(folder: Path) -> None:
        call(folder / "study", f"--train.seed={list(SEEDS)}")

    def single_runs(folder: Path) -> None:
        for activation in activations:
            for seed in SEEDS:
                call(folder / f"{activation}{seed}", f"--model.activation={activation}", f"--train.seed={seed}")

    with tempfile.TemporaryDirectory() as warm:  # prepares the tokens
        call(Path(warm) / "run", "--model.activation=relu", "--train.tokens=1")
    seconds = time_in_folders({"study": study, "single runs": single_runs}, rounds)
    show("speed of a study against its runs as single commands", ratio(seconds["single runs"], seconds["study"]))


def compare_stacked(count: int, tokens: int, device: Device, rounds: int) -> None:
    """Print the time of a stack of runs against that of one run, as whole runs and as steps."""
    run = quick_run()
    train_config = dataclasses.replace(run.train, tokens=tokens, device=device)
    seeds = [dataclasses.replace(train_config, seed=seed) for seed in range(count)]
    runs = [dataclasses.replace(run, train=seed) for seed in seeds]
    speeds: dict[str, list[float]] = {"stack": [], "one run": []}  # of a run while it trains, tokens/s

    def stack(folder: Path) -> None:
        summaries = train_stack({folder / str(config.train.seed): config for config in runs})
        summary = summaries[folder / "0"]
        assert summary is not None, "a run failed"
        speeds["stack"].append(summary["perf/tokens_per_s"])

    def one_run(folder: Path) -> None:
        speeds["one run"].append(train(runs[0], folder / "run")["perf/tokens_per_s"])

    seconds = time_in_folders({"stack": stack, "one run": one_run}, rounds)
    show(f"time of {count} stacked runs against one, whole runs", ratio(seconds["stack"], seconds["one run"]))
    show("the same, training steps alone", ratio(speeds["one run"], speeds["stack"]))


def main(tokens: int = 600_000, rounds: int = 3, stacked: int = 0, device: Device = "auto") -> None:
    """Compare the commands, or a stack with one run.

    Args:
        tokens: budget of each run
        rounds: how often each side is timed
        stacked: compare a stack of so many runs with one run instead
        device: as --train.device
    """
    if stacked:
        compare_stacked(stacked, tokens, device, rounds)
    else:
        compare_commands(tokens, device, rounds)


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/studies.py", description=__doc__)
