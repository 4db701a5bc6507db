"""Our training steps, for the benchmarks that time them."""

import dataclasses

import numpy as np
from rounds import ROOT

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
    """A network in training on these tokens, with its optimisers."""

    def __init__(self, config: RunConfig, tokens_N: np.ndarray, n_vocab: int):
        device = pick_device(config.train.device)
        self.config, self.tokens_N = config, tokens_N
        self.model = GPT(config.model, n_vocab).to(device)
        if config.train.compile:
            compile_loss(self.model)
        self.optimizers = build_optimizers(self.model, config.train)
        self.precision = pick_precision(config.train.precision, device)

    def step(self) -> None:
        """Take a training step."""
        train_step(self.model, self.optimizers, self.tokens_N, self.config, 0, 1e-3, self.precision)
