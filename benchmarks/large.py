"""One larger run on a GPU: training steps at GPT-2 small's size against nanoGPT with its own best settings, in turn.

Both are compiled, in bf16, with fused AdamW and torch's attention kernels; nanoGPT with its padded vocabulary.

python benchmarks/large.py --nanogpt PATH [--batch 48] [--accumulate 4] [--rounds 5]
"""

from functools import partial
from pathlib import Path

import torch
import tyro
from ours import Training
from peers import nanogpt_model, nanogpt_step, random_tokens
from rounds import ROUNDS, Work, compare

from model.config import ModelConfig
from model.size import size
from training.config import RunConfig, TrainConfig

N_VOCAB, PADDED = 50_257, 50_304
STEPS = 5  # of a turn
NETWORK = ModelConfig("gelu", n_layer=12, n_head=12, d_model=768, context=1024)


def make(who: str, run: RunConfig, checkout: Path) -> Work:
    """Return a turn of one side."""
    torch.set_float32_matmul_precision("high")  # as nanoGPT's train.py
    tokens_N = random_tokens(N_VOCAB)
    if who == "ours":
        step = Training(run, tokens_N, N_VOCAB).step
    else:
        step = nanogpt_step(nanogpt_model(checkout, run.model, PADDED).cuda(), tokens_N, run)

    def turn() -> None:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()

    return turn


def main(nanogpt: Path, batch: int = 48, accumulate: int = 4, rounds: int = ROUNDS) -> None:
    """Print tokens/s of both and their ratio.

    Args:
        nanogpt: checkout of nanoGPT
        batch: sequences of a step
        accumulate: micro-batches of a step
        rounds: turns of each side
    """
    recipe = TrainConfig(batch_size=batch, accumulate=accumulate, compile=True, device="cuda")
    run = RunConfig(model=NETWORK, train=recipe)
    millions = size(NETWORK, N_VOCAB).total / 1e6
    turn = partial(make, run=run, checkout=nanogpt)
    compare(f"{millions:.0f} M parameters", turn, ["ours"], ["nanoGPT"], STEPS * run.tokens_per_step, rounds)


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/large.py", description=__doc__)
