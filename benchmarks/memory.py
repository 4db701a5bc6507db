"""Peak memory of a training step at a vocabulary of 50,257 against nanoGPT: each in a process of its own, in turn.

Width 256, context 256, batch 16, 6 layers. What a process holds before its network is made does not count.

python benchmarks/memory.py --nanogpt PATH [--rounds 5]
"""

from pathlib import Path

import torch
import tyro
from ours import Training
from peers import nanogpt_model, nanogpt_step, random_tokens
from rounds import CPU, ROUNDS, ratio, run_alone, show

from model.config import ModelConfig
from training.config import RunConfig, TrainConfig
from training.device import keep_memory, peak_memory

VOCABULARY, STEPS = 50_257, 3
NETWORK = ModelConfig(activation="gelu", n_layer=6, n_head=4, d_model=256, context=256)
RUN = RunConfig(model=NETWORK, train=TrainConfig(batch_size=16, device="cpu"))


def measure(checkout: Path | None) -> int:
    """Take a few steps, with nanoGPT if its checkout is given, and return the peak above the start, bytes."""
    tokens_N = random_tokens(VOCABULARY)
    _ = torch.ones(8, 8) @ torch.ones(8, 8)  # loads the library that multiplies
    before = peak_memory(CPU)
    if checkout:
        step = nanogpt_step(nanogpt_model(checkout, NETWORK, VOCABULARY), tokens_N, RUN)
    else:
        keep_memory()
        step = Training(RUN, tokens_N, VOCABULARY).step
    for _ in range(STEPS):
        step()
    return peak_memory(CPU) - before


def main(nanogpt: Path, rounds: int = ROUNDS) -> None:
    """Print the peaks and their ratio.

    Args:
        nanogpt: checkout of nanoGPT
        rounds: processes of each side
    """
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(run_alone(measure, None) / 1e9)
        theirs.append(run_alone(measure, nanogpt) / 1e9)
    show("ours, GB", ours)
    show("nanoGPT, GB", theirs)
    show("ours against nanoGPT", ratio(ours, theirs))


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/memory.py", description=__doc__)
