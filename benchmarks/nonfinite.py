"""What it costs to look at the loss and the norm of the gradient after every step: a single run's step, one thread.

A step, and the look alone, which takes a copy to the host; medians of five rounds, in CPU time.

python benchmarks/nonfinite.py
"""

import math
import statistics
import time
from pathlib import Path

import torch

from data.dataset import prepare
from model.gpt import GPT
from study.config import merge
from study.grid import expand
from training.device import pick_precision
from training.optim import build_optimizers
from training.step import train_step

ROUNDS, STEPS, LOOKS = 5, 10, 1000


def main() -> None:
    """Print both times."""
    torch.set_num_threads(1)
    config = expand(merge(Path(__file__).parent.parent / "configs" / "single.toml", {}), "single")[""]
    data, precision = prepare(config.data), pick_precision("auto", torch.device("cpu"))
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    steps, looks = [], []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        for step in range(STEPS):
            train_step(model, optimizers, data.train.tokens_N, config, step, 1e-3, precision)
        steps.append((time.process_time() - began) / STEPS)
        loss, norm = torch.tensor(4.0), torch.tensor(1.0)
        began = time.process_time()
        for _ in range(LOOKS):
            assert math.isfinite(sum(torch.stack([loss, norm]).tolist()))
        looks.append((time.process_time() - began) / LOOKS)
    step, look = statistics.median(steps[1:]), statistics.median(looks[1:])
    print(f"a step {step * 1e3:.1f} ms, the look {look * 1e6:.1f} µs: {look / step:.4%}")


if __name__ == "__main__":
    main()
