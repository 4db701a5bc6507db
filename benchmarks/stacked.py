"""Runs stacked into one batched program against one run: training steps at the quick study's size, in turn.

With --engines, whole runs instead: ten of that size by the stacked engine, against the same one after another.

python benchmarks/stacked.py [--runs 32] [--steps 20] [--device cuda] [--engines] [--json FILE] [--model.d_model=...]
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import in_turn, ratio, save, say

from data.dataset import prepare
from model.gpt import GPT
from study.config import Tree, merge
from study.grid import expand
from training.config import RunConfig
from training.device import cores, environment, pick_device, pick_precision
from training.loop import train
from training.optim import build_optimizers
from training.stacked import Stack
from training.step import train_step
from training.together import train_together


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


def flags(texts: list[str]) -> Tree:
    """Read settings such as --model.d_model=64 and --train.tokens=1000; numbers are written as in TOML."""
    tree: Tree = {}
    for text in texts:
        path, _, value = text.removeprefix("--").partition("=")
        section, _, key = path.partition(".")
        tree.setdefault(section, {})[key] = json.loads(value) if value[:1].isdigit() else value
    return tree


def main() -> None:
    """Print the ratio of the two times and its spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--json", type=Path)
    given, rest = parser.parse_known_args()
    count = given.runs or (10 if given.engines else 32)
    torch.set_num_threads(cores())
    changes = {"train": {"device": given.device, "threads": cores()}, "wandb": {"mode": "disabled"}}
    for section, part in flags(rest).items():
        changes[section] = changes.get(section, {}) | part
    quick = Path(__file__).parent.parent / "configs" / "quick.toml"
    config = next(iter(expand(merge(quick, {"model": {"activation": "gelu"}} | changes), "quick").values()))
    device = pick_device(config.train.device)
    work = engines(config, count) if given.engines else steps(config, count, given.steps)

    times = in_turn(work)
    what = f"{count} runs stacked against one after another" if given.engines else f"{count} stacked runs against one"
    figures = ratio(times["stacked"], times["alone"])
    say(f"{what}, {device.type}", figures)
    env = environment(device, pick_precision(config.train.precision, device))
    save(given.json, {"runs": count, "engines": given.engines, "seconds": times, "environment": env} | figures)


if __name__ == "__main__":
    main()
