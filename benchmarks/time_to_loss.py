"""Wall-clock time to nanoGPT's own final loss on tiny Shakespeare characters, whole commands, in turn.

nanoGPT: its README's recipe for a CPU, 2,000 steps. Ours: configs/shakespeare-char-muon.toml. Start-up, scores and
checkpoints count on both sides; the preparation of the text, done once before, counts on neither.

python benchmarks/time_to_loss.py --nanogpt PATH --text input.txt [--rounds 3]
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import tyro
from rounds import ROOT, ratio, run_command, show

RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"
)


def main(nanogpt: Path, text: Path, rounds: int = 3, steps: int = 2000) -> None:
    """Print both times, both final losses and the ratio.

    Args:
        nanogpt: checkout of nanoGPT; it is copied, and trains in the copy
        text: tiny Shakespeare, nanoGPT's data/shakespeare_char/input.txt
        rounds: how often each side is trained
        steps: of nanoGPT; fewer than 2,000 only show that the benchmark works
    """
    times: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
    losses: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
    with tempfile.TemporaryDirectory() as name:
        peer = Path(name) / "nanogpt"
        shutil.copytree(nanogpt, peer, ignore=shutil.ignore_patterns(".git"))
        shutil.copy(text, peer / "data" / "shakespeare_char" / "input.txt")
        run_command([sys.executable, "data/shakespeare_char/prepare.py"], peer)
        theirs = [sys.executable, "train.py", *RECIPE.split()]
        theirs += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={min(steps, 250)}"]
        # wandb is off, as it is for nanoGPT.
        ours = [sys.executable, "train.py", "configs/shakespeare-char-muon.toml", "--wandb.mode=disabled"]
        ours.append(f"--data.corpus={text.resolve()}")
        run_command([*ours, "--train.tokens=2048", f"--out={name}/warm"], ROOT)
        for n in range(rounds):
            seconds, printed = run_command(theirs, peer)
            times["nanoGPT"].append(seconds)
            losses["nanoGPT"].append(float(re.findall(rf"step {steps}: .*val loss ([\d.]+)", printed)[0]))
            out = Path(name) / f"run{n}"
            seconds, _ = run_command([*ours, f"--train.seed={n}", f"--out={out}"], ROOT)
            times["ours"].append(seconds)
            losses["ours"].append(json.loads((out / "summary.json").read_text())["val/loss"])
            for who in times:
                print(f"{who}: {times[who][-1]:.1f} s to {losses[who][-1]:.3f} nats per character", flush=True)
    show("time of ours against nanoGPT's", ratio(times["ours"], times["nanoGPT"]))


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/time_to_loss.py", description=__doc__)
