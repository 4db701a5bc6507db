"""The share of training time that the probes take, one thread, 586 steps of the quick study's GELU run.

Steps with and without the path followed come in turn; then the model is measured once. Medians of five rounds.

python benchmarks/probes.py
"""

import dataclasses
import statistics
import time
from pathlib import Path

import torch

from data.dataset import prepare
from model.gpt import GPT
from study.config import expand, merge
from training.config import RunConfig
from training.device import pick_precision
from training.optim import build_optimizers
from training.probes import Probes, probe_steps
from training.step import train_step

ROUNDS, PAIRS = 5, 20


def shares(config: RunConfig) -> list[float]:
    """Return the time of the probes as a share of that of training, one for each round."""
    data, precision = prepare(config.data), pick_precision("auto", torch.device("cpu"))
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    off = Probes(model, optimizers, data.val, config.steps, 0)
    on = Probes(model, optimizers, data.val, config.steps, config.train.probes)
    moments = len(probe_steps(config.steps, config.train.probes))

    def step(number: int, probes: Probes, to: int) -> float:
        began = time.perf_counter()
        with probes.following(to):
            train_step(model, optimizers, data.train.tokens_N, config, number, 1e-3, precision)
        probes.measure(to)
        return time.perf_counter() - began

    for number in range(3):
        step(number, on, config.steps)
    found = []
    for _ in range(ROUNDS):
        pairs = [(step(number, off, -1), step(number, on, -1)) for number in range(PAIRS)]
        plain, followed = (statistics.median(times) for times in zip(*pairs, strict=True))
        measured = statistics.median(step(number, on, config.steps) for number in range(3)) - followed
        found.append((followed - plain) / plain + moments * measured / (config.steps * plain))
        print(f"    step {plain * 1e3:.1f} ms, followed {followed * 1e3:.1f}, a measurement {measured * 1e3:.0f} more")
    return found


def main() -> None:
    """Print the share at two widths."""
    torch.set_num_threads(1)
    quick = expand(merge(Path(__file__).parent.parent / "configs" / "quick.toml", {}), "quick")["gelu"]
    for d_model in (192, 96):
        config = dataclasses.replace(quick, model=dataclasses.replace(quick.model, d_model=d_model))
        found = shares(config)
        print(
            f"width {d_model}: {statistics.median(found):.2%} of training ({min(found):.2%} to {max(found):.2%}, five)"
        )


if __name__ == "__main__":
    main()
