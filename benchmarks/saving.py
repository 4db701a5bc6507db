"""The share of training time that saving takes: the quick study's GELU run, one thread, at its own interval.

Tensors, tokenizer, SHA-256 and fsync, on the disk of the working directory; steps and saves in turn, medians of nine.
In wall-clock time, since a save waits for the disk: run it on an idle machine.

python benchmarks/saving.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from data.dataset import prepare
from model.gpt import GPT
from study.config import merge
from study.grid import expand
from training import checkpoint
from training.device import pick_precision
from training.optim import build_optimizers
from training.step import train_step

ROUNDS, STEPS = 9, 5


def main() -> None:
    """Print the time of a step and of a save, and the share of the latter."""
    torch.set_num_threads(1)
    config = expand(merge(Path(__file__).parent.parent / "configs" / "quick.toml", {}), "quick")["gelu"]
    data, precision = prepare(config.data), pick_precision("auto", torch.device("cpu"))
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    steps, saves, size = [], [], 0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for n in range(ROUNDS + 1):
            began = time.perf_counter()
            for step in range(STEPS):
                train_step(model, optimizers, data.train.tokens_N, config, n * STEPS + step, 1e-3, precision)
            trained = time.perf_counter()
            path = checkpoint.save(Path(folder), n, model, optimizers, {"offset": 0}, data.tokenizer, config.train.keep)
            saves.append(time.perf_counter() - trained)
            steps.append((trained - began) / STEPS)
            size = sum(file.stat().st_size for file in path.iterdir())
    step, save = statistics.median(steps[1:]), statistics.median(saves[1:])
    count = len({*range(config.train.checkpoint_every, config.steps, config.train.checkpoint_every), config.steps})
    share = count * save / (config.steps * step)
    print(f"a step {step * 1e3:.1f} ms, a save {save * 1e3:.1f} ms ({size / 1e6:.1f} MB)")
    print(f"{count} saves in {config.steps} steps: {share:.2%} of training time")


if __name__ == "__main__":
    main()
