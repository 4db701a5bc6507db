"""Runs stacked into one batched program against one run: training steps at the quick study's size, in turn.

With --engines, whole runs instead: ten of that size by the stacked engine, against the same one after another.

python benchmarks/stacked.py [--runs 32] [--steps 20] [--device cuda] [--engines] [--tokens 600000] [--json FILE]
"""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from ours import runs_of
from rounds import Output, in_turn, ratio, save, say

from data.dataset import prepare
from model.gpt import GPT
from training.config import RunConfig
from training.device import cores, environment, pick_device, pick_precision
from training.loop import train
from training.optim import build_optimizers
from training.stacked import Stack
from training.step import train_step
from training.together import train_together


@dataclass(frozen=True)
class Command(Output):
    """Time runs that are stacked."""

    runs: int | None = None
    """how many; else 32, or 10 with --engines"""
    steps: int = 20
    """of each in a round, without --engines"""
    device: str = "auto"
    """as --train.device"""
    engines: bool = False
    """whole runs instead of steps"""
    tokens: int = 600_000
    """of each whole run"""


def seeds(config: RunConfig, count: int) -> list[RunConfig]:
    """Return that many runs, which differ in their seed."""
    return [dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed)) for seed in range(count)]


def steps(config: RunConfig, count: int, number: int) -> dict[str, Callable[[], None]]:
    """Return what takes a number of steps with a stack of `count` runs, and with one run."""
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    data = prepare(config.data)
    configs = seeds(config, count)
    models = [GPT(c.model, data.tokenizer.n_vocab, c.train.seed).to(device) for c in [*configs, config]]
    optimizers = [build_optimizers(model, config.train) for model in models]
    stack, tokens_N, lr = Stack(models[:-1], config), data.train.tokens_N, config.train.lr

    def stacked() -> None:
        for step in range(number):
            stack.step(optimizers[:-1], [tokens_N] * count, configs, step, [lr] * count, precision)
        finish()

    def alone() -> None:
        for step in range(number):
            train_step(models[-1], optimizers[-1], tokens_N, config, step, lr, precision)
        finish()

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {"stacked": stacked, "alone": alone}


def engines(config: RunConfig, count: int) -> dict[str, Callable[[], None]]:
    """Return what trains `count` whole runs stacked, and one after another; all have all threads."""
    runs = seeds(config, count)

    def stacked() -> None:
        with tempfile.TemporaryDirectory() as folder:
            done = train_together({Path(folder) / str(c.train.seed): c for c in runs})
            assert all(done.values()), "a run failed"

    def alone() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for c in runs:
                train(c, Path(folder) / str(c.train.seed))

    return {"stacked": stacked, "alone": alone}


def main() -> None:
    """Print the ratio of the two times and its spread."""
    command = tyro.cli(Command, prog="python benchmarks/stacked.py", description=__doc__)
    count = command.runs or (10 if command.engines else 32)
    torch.set_num_threads(cores())
    train = {"device": command.device, "threads": cores(), "tokens": command.tokens}
    changes = {"model": {"activation": "gelu"}, "train": train, "wandb": {"mode": "disabled"}}
    config = runs_of("quick", changes)[""]
    device = pick_device(command.device)
    work = engines(config, count) if command.engines else steps(config, count, command.steps)

    times = in_turn(work)
    what = f"{count} runs stacked against one after another" if command.engines else f"{count} stacked runs against one"
    figures = ratio(times["stacked"], times["alone"])
    say(f"{what}, {device.type}", figures)
    env = environment(device, pick_precision(config.train.precision, device))
    save(command.json, {"runs": count, "engines": command.engines, "seconds": times, "environment": env} | figures)


if __name__ == "__main__":
    main()
