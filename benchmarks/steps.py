"""Training steps on a CPU against nanoGPT and transformers' GPT-2, same size and batch, in turn.

python benchmarks/steps.py --nanogpt PATH [--only 6x256] [--compile] [--rounds 5] [--no-keep-memory]
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from ours import Training
from peers import gpt2_model, gpt2_step, nanogpt_model, nanogpt_step, peers, random_tokens
from rounds import ROUNDS, Work, compare

from model.config import ModelConfig
from training.config import RunConfig, TrainConfig
from training.device import keep_memory

SIZES = {  # name: layers, heads, width, context, vocabulary, batch
    "6x256": (6, 4, 256, 256, 4096, 16),
    "char": (4, 4, 128, 64, 65, 12),  # nanoGPT's recipe for a CPU
    "6x768": (6, 12, 768, 256, 4096, 8),
    "6x768x16": (6, 12, 768, 256, 4096, 16),
}


@dataclass(frozen=True)
class Side:
    """One of those that are compared."""

    who: str
    precision: str = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.who} {self.precision}" + " compiled" * self.compiled


def config_of(size: str, **options: Any) -> RunConfig:
    """Return our run at one of the sizes; `options` are of its training."""
    n_layer, n_head, d_model, context, _, batch = SIZES[size]
    network = ModelConfig(activation="gelu", n_layer=n_layer, n_head=n_head, d_model=d_model, context=context)
    return RunConfig(model=network, train=TrainConfig(batch_size=batch, device="cpu", **options))


def steps_of_turn(run: RunConfig) -> int:
    """Return how many steps a turn has, so that it is long enough to be timed."""
    return 1 if run.tokens_per_step > 1000 else 20


def make(side: Side, size: str, checkout: Path | None, keep: bool) -> Work:
    """Return a turn of training steps of one side."""
    run = config_of(size, precision=side.precision, compile=side.compiled)
    n_vocab = SIZES[size][4]
    tokens_N = random_tokens(n_vocab)
    if side.who == "nanoGPT":
        assert checkout is not None
        step = nanogpt_step(nanogpt_model(checkout, run.model, n_vocab), tokens_N, run)
    elif side.who == "transformers":
        step = gpt2_step(gpt2_model(run.model, n_vocab), tokens_N, run)
    else:
        if keep:
            keep_memory()
        step = Training(run, tokens_N, n_vocab).step
    step()  # the second step still asks for memory that later ones find there: no turn that counts may have it

    def turn() -> None:
        for _ in range(steps_of_turn(run)):
            step()

    return turn


def main(
    nanogpt: Path | None = None,
    only: Literal["", "6x256", "char", "6x768", "6x768x16"] = "",
    compiled: Annotated[bool, tyro.conf.arg(name="compile")] = False,
    rounds: int = ROUNDS,
    keep_memory: bool = True,
) -> None:
    """Print the tokens/s of each side at every size, and the ratios.

    Args:
        nanogpt: checkout of nanoGPT; without one it is left out
        only: one of the sizes
        compiled: also ours and nanoGPT compiled (torch.compile)
        rounds: turns of each side
        keep_memory: as a run does; --no-keep-memory shows what that is worth
    """
    ours = [Side("ours", "auto"), Side("ours", "fp32")]
    others = [Side(who) for who in peers(nanogpt)]
    if compiled:
        ours += [Side(side.who, side.precision, compiled=True) for side in ours]
        others += [Side(side.who, compiled=True) for side in others if side.who == "nanoGPT"]
    for size in [only] if only else SIZES:
        run = config_of(size)
        turn = partial(make, size=size, checkout=nanogpt, keep=keep_memory)
        compare(size, turn, ours, others, steps_of_turn(run) * run.tokens_per_step, rounds)


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/steps.py", description=__doc__)
