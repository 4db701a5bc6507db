"""A study of ten runs at the quick study's size against the same runs one after another with all threads, in turn.

Whole commands on both sides, as a user types them: one for the study, report included, and one for each run alone.

python benchmarks/ten_runs.py [--tokens 600000] [--rounds 3] [--json figures.json]
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from ours import CONFIGS, runs_of
from rounds import ROOT, Output, ratio, save, say, seconds


@dataclass(frozen=True)
class Command(Output):
    """Time a study."""

    tokens: int = 150_000
    """of each run; the quick study's have 600,000"""
    rounds: int = 3
    """how often each is timed"""


def train(out: Path, tokens: int, activation: str = "", seed: str = "[0, 1]") -> None:
    """Run the quick study with two seeds, or the one run of it that an activation and a seed name."""
    options = {"train.tokens": tokens, "train.seed": seed, "wandb.mode": "disabled", "out": out}
    if activation:
        options["model.activation"] = activation
    flags = [f"--{name}={value}" for name, value in options.items()]
    door = [sys.executable, "train.py", str(CONFIGS / "quick.toml"), *flags]
    subprocess.run(door, cwd=ROOT, capture_output=True, check=True)


def main() -> None:
    """Print both times, the ratio and its spread."""
    command = tyro.cli(Command, prog="python benchmarks/ten_runs.py")
    runs = runs_of("quick", {"train": {"seed": [0, 1]}})

    def one_after_another(folder: Path) -> None:
        for name, config in runs.items():
            train(folder / name, command.tokens, config.model.activation, str(config.train.seed))

    works = {"study": lambda folder: train(folder / "study", command.tokens), "one after another": one_after_another}
    times: dict[str, list[float]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as warm:  # tokens prepared, files read once
        train(Path(warm) / "run", 1, "relu", "0")
    for _ in range(command.rounds):
        for name, work in works.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(seconds(lambda work=work, folder=folder: work(Path(folder))))
            print(f"{name}: {times[name][-1]:.0f} s", flush=True)
    figures = ratio(times["one after another"], times["study"])
    say(f"a study of {len(runs)} runs against the same one after another", figures)
    save(command.json, {"runs": len(runs), "tokens": command.tokens, "seconds": times} | figures)


if __name__ == "__main__":
    main()
