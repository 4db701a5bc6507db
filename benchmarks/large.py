"""One larger run on a GPU: training steps at GPT-2 small's size against nanoGPT with its own best settings, in turn.

Both are compiled, in bf16, with fused AdamW and torch's attention kernels; nanoGPT with its padded vocabulary.

python benchmarks/large.py --nanogpt PATH [--json figures.json]
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from peers import nanogpt, nanogpt_step, our_step, random_tokens
from rounds import Output, in_turn, ratio, save, say

from model.config import ModelConfig
from model.size import size
from training.config import RunConfig, TrainConfig
from training.device import environment, pick_device, pick_precision

N_VOCAB, PADDED = 50_257, 50_304


@dataclass(frozen=True)
class Command(Output):
    """Time training steps."""

    nanogpt: Path
    """checkout of nanoGPT"""
    layers: int = 12
    heads: int = 12
    width: int = 768
    context: int = 1024
    batch: int = 48
    """sequences of a step"""
    accumulate: int = 4
    """micro-batches of a step"""
    steps: int = 5
    """steps of a round"""
    device: Literal["cuda", "cpu"] = "cuda"


def main() -> None:
    """Print tokens/s of both and their ratio."""
    command = tyro.cli(Command, prog="python benchmarks/large.py")
    device = pick_device(command.device)
    network = ModelConfig("gelu", command.layers, command.heads, command.width, command.context)
    recipe = TrainConfig(batch_size=command.batch, accumulate=command.accumulate, compile=True, device=command.device)
    run, tokens_N = RunConfig(model=network, train=recipe), random_tokens(N_VOCAB)
    works = {
        "ours": our_step(tokens_N, run, N_VOCAB),
        "nanoGPT": nanogpt_step(nanogpt(command.nanogpt, network, PADDED).to(device), tokens_N, run),
    }

    def several(work) -> None:
        for _ in range(command.steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = in_turn({label: lambda work=work: several(work) for label, work in works.items()})
    env = environment(device, pick_precision("auto", device), compiled=True)
    speed = {label: command.steps * run.tokens_per_step / statistics.median(each) for label, each in times.items()}
    for label, tokens_per_s in speed.items():
        print(f"{label}: {tokens_per_s:,.0f} tokens/s")
    figures = ratio(times["nanoGPT"], times["ours"])
    say(f"{size(network, N_VOCAB).total / 1e6:.0f} M parameters, ours against nanoGPT", figures)
    save(command.json, {"tokens_per_s": speed, "ours / nanoGPT": figures, "environment": env})


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # as nanoGPT's train.py
    main()
