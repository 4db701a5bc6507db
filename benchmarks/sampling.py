"""Sampling on a CPU against nanoGPT and transformers' GPT-2: 255 new tokens after one, in turn.

6 layers, width 256, context 256, vocabulary 4,096. All draw from the softmax, each side in a process of its own. Ours
runs as sample.py does.

python benchmarks/sampling.py --nanogpt PATH [--batches 1 16] [--rounds 5]
"""

from functools import partial
from pathlib import Path

import torch
import tyro
from peers import gpt2_model, nanogpt_model, peers
from rounds import ROUNDS, Work, compare

from model.config import ModelConfig
from model.generate import generate
from model.gpt import GPT
from training.device import keep_memory

NEW, VOCABULARY = 255, 4096
NETWORK = ModelConfig(activation="gelu", n_layer=6, n_head=4, d_model=256, context=256)


def make(who: str, batch: int, checkout: Path | None) -> Work:
    """Return a turn of sampling of one side."""
    start_B1 = torch.randint(VOCABULARY, (batch, 1), generator=torch.Generator().manual_seed(0))
    if who == "nanoGPT":
        assert checkout is not None
        peer = nanogpt_model(checkout, NETWORK, VOCABULARY).eval()
        return lambda: peer.generate(start_B1, NEW)
    if who == "transformers":
        other = gpt2_model(NETWORK, VOCABULARY).eval()
        options = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": 0}
        return lambda: other.generate(start_B1, **options)
    keep_memory()
    model = GPT(NETWORK, VOCABULARY)
    return lambda: generate(model, start_B1, NEW)


def main(nanogpt: Path | None = None, batches: tuple[int, ...] = (1, 16), rounds: int = ROUNDS) -> None:
    """Print the tokens/s of each side at every batch size, and the ratios.

    Args:
        nanogpt: checkout of nanoGPT; without one it is left out
        batches: texts that are drawn together
        rounds: turns of each side
    """
    for batch in batches:
        turn = partial(make, batch=batch, checkout=nanogpt)
        compare(f"batch {batch:2d}", turn, ["ours"], peers(nanogpt), batch * NEW, rounds)


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/sampling.py", description=__doc__)
