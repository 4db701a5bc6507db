"""Sampling on a CPU against nanoGPT and transformers' GPT-2: 255 new tokens after one, in turn, medians of five.

6 layers, width 256, context 256, vocabulary 4096; all draw from the softmax. Ours runs as sample.py does.

python benchmarks/sampling.py --nanogpt PATH [--json figures.json]
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from peers import gpt2, nanogpt, peers, prompt
from rounds import Output, in_turn, machine, process, ratio, save, say
from torch import Tensor

from model.config import ModelConfig
from model.generate import generate
from model.gpt import GPT
from training.device import autocast, keep_memory, pick_precision

NEW, VOCABULARY = 255, 4096
NETWORK = ModelConfig(activation="gelu", n_layer=6, n_head=4, d_model=256, context=256)
BATCHES = (1, 16)


@dataclass(frozen=True)
class Command(Output):
    """Time sampling."""

    nanogpt: Path | None = None
    """checkout of nanoGPT; without it, it is left out"""


def sampler(start_B1: Tensor) -> Callable[[], object]:
    """Return what draws a text for each row with our network, as sample.py does."""
    cpu = torch.device("cpu")
    model, precision = GPT(NETWORK, VOCABULARY), pick_precision("auto", cpu)

    def draw() -> None:
        with autocast(precision, cpu):
            generate(model, start_B1, NEW, temperature=1.0)

    return draw


def work(label: str, batch: str, checkout: str = "") -> Callable[[], object]:
    """Return what draws a text for each row of a batch, by ours or a peer; ours keeps its memory, as sample.py does."""
    start_B1 = prompt(VOCABULARY, int(batch))
    if label == "ours":
        keep_memory()
        return sampler(start_B1)
    if label == "nanoGPT":
        peer = nanogpt(Path(checkout), NETWORK, VOCABULARY).eval()
        return lambda: peer.generate(start_B1, NEW)
    other = gpt2(NETWORK, VOCABULARY).eval()
    options = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    return lambda: other.generate(start_B1, **options)


def compare(batch: int, checkout: Path | None) -> dict[str, Any]:
    """Print and return the tokens/s of each at one batch size, and the ratios."""
    works = {}
    with ExitStack() as held:
        for label in ("ours", *peers(checkout)):
            works[label] = held.enter_context(process("sampling", label, str(batch), str(checkout or "")))
        times = in_turn(works)
    figures: dict[str, Any] = {}
    for label, each in times.items():
        figures[label] = {"tokens_per_s": batch * NEW / statistics.median(each)}
        print(f"batch {batch:2d}  {label:13s} {figures[label]['tokens_per_s']:8,.0f} tokens/s")
    for label in list(works)[1:]:
        figures[f"ours / {label}"] = ratio(times[label], times["ours"])
        say(f"batch {batch:2d}  ours against {label}", figures[f"ours / {label}"])
    return figures


def main() -> None:
    """Compare at every batch size."""
    command = tyro.cli(Command, prog="python benchmarks/sampling.py")
    peak = machine()
    save(command.json, {"machine": peak} | {str(batch): compare(batch, command.nanogpt) for batch in BATCHES})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
