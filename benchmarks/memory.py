"""Peak memory of a training step at a vocabulary of 50,257 against nanoGPT: each in a process of its own, in turn.

Width 256, context 256, batch 16, 6 layers. What the process holds before its network is made is taken off.

python benchmarks/memory.py --nanogpt PATH [--json figures.json]
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from peers import nanogpt, nanogpt_step, our_step, random_tokens
from rounds import ROUNDS, Output, ratio, save, say

from model.config import ModelConfig
from training.config import RunConfig, TrainConfig
from training.device import keep_memory, peak_memory

VOCABULARY, STEPS = 50_257, 3
NETWORK = ModelConfig(activation="gelu", n_layer=6, n_head=4, d_model=256, context=256)
RUN = RunConfig(model=NETWORK, train=TrainConfig(batch_size=16, device="cpu"))


@dataclass(frozen=True)
class Command(Output):
    """Compare peak memory."""

    nanogpt: Path
    """checkout of nanoGPT"""
    inside: str = ""
    """set by the benchmark itself, for the process that measures one of the two"""


def measure(what: str, checkout: Path) -> None:
    """Take a few steps and print the peak above the start, bytes."""
    tokens_N = random_tokens(VOCABULARY)
    _ = torch.ones(8, 8) @ torch.ones(8, 8)
    before = peak_memory(torch.device("cpu"))
    if what == "ours":
        keep_memory()
        step = our_step(tokens_N, RUN, VOCABULARY)
    else:
        step = nanogpt_step(nanogpt(checkout, NETWORK, VOCABULARY), tokens_N, RUN)
    for _ in range(STEPS):
        step()
    print(json.dumps(peak_memory(torch.device("cpu")) - before))


def main() -> None:
    """Print the peaks and their ratio."""
    command = tyro.cli(Command, prog="python benchmarks/memory.py")
    if command.inside:
        measure(command.inside, command.nanogpt)
        return
    peaks: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
    for _ in range(ROUNDS):
        for what, each in peaks.items():
            again = [sys.executable, __file__, "--nanogpt", str(command.nanogpt), "--inside", what]
            each.append(json.loads(subprocess.run(again, capture_output=True, text=True, check=True).stdout))
    for what, each in peaks.items():
        print(f"{what}: {min(each) / 1e9:.2f} to {max(each) / 1e9:.2f} GB")
    figures = ratio(peaks["ours"], peaks["nanoGPT"])
    say("ours against nanoGPT", figures)
    save(command.json, {"bytes": peaks, "ours / nanoGPT": figures})


if __name__ == "__main__":
    main()
