"""Our training step, for the benchmarks that time it."""

import dataclasses

import numpy as np
from rounds import CPU, ROOT, Work

from data.dataset import prepare
from model.gpt import GPT
from training.config import RunConfig, build, read_toml
from training.device import pick_device, pick_precision
from training.optim import build_optimizers
from training.step import compile_loss, train_step


def quick_run() -> RunConfig:
    """Return the run of the quick study (configs/quick.toml) that has GELU."""
    tree = read_toml(ROOT / "configs" / "quick.toml")
    tree["model"]["activation"] = "gelu"
    run = build(tree, "configs/quick.toml")
    return dataclasses.replace(run, wandb=dataclasses.replace(run.wandb, mode="disabled"))


class Training:
    """A network on the CPU, its data and its optimisers."""

    def __init__(self, config: RunConfig):
        self.config, self.data = config, prepare(config.data)
        self.model = GPT(config.model, self.data.tokenizer.n_vocab)
        self.optimizers = build_optimizers(self.model, config.train)
        self.precision = pick_precision("auto", CPU)

    def step(self) -> None:
        """Take a training step."""
        train_step(self.model, self.optimizers, self.data.train.tokens_N, self.config, 0, 1e-3, self.precision)


def our_step(tokens_N: np.ndarray, run: RunConfig, n_vocab: int) -> Work:
    """Return our training step on these tokens."""
    device = pick_device(run.train.device)
    model = GPT(run.model, n_vocab).to(device)
    if run.train.compile:
        compile_loss(model)
    optimizers, precision = build_optimizers(model, run.train), pick_precision(run.train.precision, device)
    return lambda: train_step(model, optimizers, tokens_N, run, 0, 1e-3, precision)
