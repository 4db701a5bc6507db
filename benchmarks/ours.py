"""A run of a config as it trains, for the benchmarks that time its steps."""

from pathlib import Path

import torch

from data.dataset import prepare
from model.gpt import GPT
from study.plan.config import Tree, merge
from study.plan.plan import make_plan
from training.config import RunConfig
from training.device import pick_precision
from training.optim import build_optimizers
from training.step import train_step

CONFIGS = Path(__file__).parent.parent / "configs"


def runs_of(study: str, changes: Tree | None = None) -> dict[str, RunConfig]:
    """Return the runs of a study in configs/, by name, with other settings where `changes` has some."""
    return make_plan(merge(CONFIGS / f"{study}.toml", changes or {}), study).runs


def run_named(study: str, run: str = "") -> RunConfig:
    """Return one run of a study in configs/."""
    return runs_of(study)[run]


class Training:
    """A network on the CPU, its data and its optimisers."""

    def __init__(self, config: RunConfig):
        self.config, self.data = config, prepare(config.data)
        self.model = GPT(config.model, self.data.tokenizer.n_vocab)
        self.optimizers = build_optimizers(self.model, config.train)
        self.precision = pick_precision("auto", torch.device("cpu"))

    def step(self, number: int = 0) -> None:
        """Take the training step of that number."""
        train_step(self.model, self.optimizers, self.data.train.tokens_N, self.config, number, 1e-3, self.precision)
