"""A study of ten runs at the quick study's size against the same runs one after another with all threads, in turn.

The study is the whole command, its start included; the runs one after another share a process that has started.

python benchmarks/ten_runs.py [--tokens 150000] [--json figures.json]
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from ours import CONFIGS, runs_of
from rounds import ROOT, Output, in_turn, ratio, save, say

from training.loop import train


@dataclass(frozen=True)
class Command(Output):
    """Time a study."""

    tokens: int = 150_000
    """of each run; the quick study's have 600,000"""
    rounds: int = 3
    """how often each is timed"""


def main() -> None:
    """Print the ratio of the two times and its spread."""
    command = tyro.cli(Command, prog="python benchmarks/ten_runs.py")
    changes = {"train": {"seed": [0, 1], "tokens": command.tokens}, "wandb": {"mode": "disabled"}}
    flags = ["--train.seed=[0, 1]", f"--train.tokens={command.tokens}", "--wandb.mode=disabled"]
    runs = runs_of("quick", changes)

    def study() -> None:
        with tempfile.TemporaryDirectory() as folder:
            door = [sys.executable, "train.py", str(CONFIGS / "quick.toml"), *flags, f"--out={folder}/study"]
            subprocess.run(door, cwd=ROOT, capture_output=True, check=True)

    def one_after_another() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, config in runs.items():
                train(config, Path(folder) / name)

    times = in_turn({"study": study, "one after another": one_after_another}, command.rounds)
    figures = ratio(times["one after another"], times["study"])
    say(f"a study of {len(runs)} runs against the same one after another", figures)
    save(command.json, {"runs": len(runs), "tokens": command.tokens, "seconds": times} | figures)


if __name__ == "__main__":
    main()
