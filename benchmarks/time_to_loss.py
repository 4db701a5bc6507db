"""Wall-clock time to nanoGPT's own final loss on tiny Shakespeare characters, whole commands, in turn.

nanoGPT: its README's CPU recipe, 2,000 steps. Ours: configs/shakespeare-char-muon.toml. Start-up, scores and
checkpoints count on both sides; the preparation of the text, done once before, on neither.

python benchmarks/time_to_loss.py --nanogpt PATH --text input.txt [--json figures.json]
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rounds import ROOT, Output, ratio, save, say

RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


@dataclass(frozen=True)
class Command(Output):
    """Time both recipes."""

    nanogpt: Path
    """checkout of nanoGPT; it is copied, and trains in the copy"""
    text: Path
    """tiny Shakespeare, nanoGPT's data/shakespeare_char/input.txt"""
    rounds: int = 3
    """how often each is trained"""


def call(command: list[str], folder: Path) -> tuple[float, str]:
    """Run a command; return how long it took, seconds, and what it printed."""
    began = time.perf_counter()
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - began, printed


def main() -> None:
    """Print both times, both final losses and the ratio."""
    command = tyro.cli(Command, prog="python benchmarks/time_to_loss.py")
    times: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
    losses: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
    with tempfile.TemporaryDirectory() as name:
        peer = Path(name) / "nanogpt"
        shutil.copytree(command.nanogpt, peer, ignore=shutil.ignore_patterns(".git"))
        shutil.copy(command.text, peer / "data" / "shakespeare_char" / "input.txt")
        call([sys.executable, "data/shakespeare_char/prepare.py"], peer)
        ours = [sys.executable, "train.py", "configs/shakespeare-char-muon.toml", "--wandb.mode=disabled"]
        ours.append(f"--data.corpus={command.text.resolve()}")  # wandb is off, as nanoGPT has it
        call([*ours, "--train.tokens=768", f"--out={name}/warm"], ROOT)
        for n in range(command.rounds):
            took, printed = call([sys.executable, "train.py", *RECIPE.split()], peer)
            times["nanoGPT"].append(took)
            losses["nanoGPT"].append(float(re.findall(r"step 2000: .*val loss ([\d.]+)", printed)[0]))
            out = Path(name) / f"run{n}"
            took, _ = call([*ours, f"--train.seed={n}", f"--out={out}"], ROOT)
            times["ours"].append(took)
            losses["ours"].append(json.loads((out / "summary.json").read_text())["val/loss"])
            for what in times:
                print(f"{what}: {times[what][-1]:.1f} s to {losses[what][-1]:.3f} nats per character", flush=True)
    figures = ratio(times["ours"], times["nanoGPT"])
    say("time of ours against nanoGPT's", figures)
    save(command.json, {"seconds": times, "val/loss": losses, "ours / nanoGPT": figures})


if __name__ == "__main__":
    main()
