"""The share of training time that the probes take: the quick study's GELU run, one thread, at two widths.

Steps with probes off and on come in turn, and a measurement follows; medians of five rounds. In CPU time, which other
processes disturb least.

python benchmarks/probes.py
"""

import dataclasses
import statistics
import time
from pathlib import Path

import torch

from data.dataset import prepare
from model.gpt import GPT
from study.config import merge
from study.grid import expand
from training.config import RunConfig
from training.device import pick_precision
from training.optim import build_optimizers
from training.probes import Probes, probe_steps
from training.step import train_step

ROUNDS, PAIRS = 5, 10


def compare(config: RunConfig) -> None:
    """Print the time of the probes as a share of that of a run's training steps."""
    data, precision = prepare(config.data), pick_precision("auto", torch.device("cpu"))
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    off, on = (Probes(model, optimizers, data.val, config.steps, factor) for factor in (0, config.train.probes))
    moments = len(probe_steps(config.steps, config.train.probes))

    def step(probes: Probes, to: int) -> tuple[float, float]:
        """Return the seconds of a training step that leads to the step `to`, and those of the probes around it."""
        began = time.process_time()
        probes.keep_before(to)
        inside = time.process_time()
        train_step(model, optimizers, data.train.tokens_N, config, 0, 1e-3, precision)
        inside = time.process_time() - inside
        probes.follow()
        probes.measure(to)
        return inside, time.process_time() - began - inside

    rounds = []
    for _ in range(ROUNDS + 1):
        pairs = [(step(off, -1), step(on, -1)) for _ in range(PAIRS)]
        plain, beside = (statistics.median(pair[n][0] for pair in pairs) for n in (0, 1))
        path = statistics.median(pair[1][1] for pair in pairs)
        measured = statistics.median(step(on, config.steps)[1] for _ in range(3))
        share = (path + moments * measured / config.steps) / plain
        rounds.append((share, plain * 1e3, beside * 1e3, path * 1e3, measured * 1e3))
    share, plain, beside, path, measured = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    shares = [row[0] for row in rounds[1:]]
    print(f"width {config.model.d_model}: a step {plain:.1f} ms ({beside:.1f} with probes on, their own time apart)")
    print(f"  the path {path:.2f} ms a step, {moments} measurements of {measured:.0f} ms in {config.steps} steps")
    print(f"  together {share:.2%} of training ({min(shares):.2%} to {max(shares):.2%}, five rounds)", flush=True)


def main() -> None:
    """Compare at the quick study's width and at half of it."""
    torch.set_num_threads(1)
    quick = expand(merge(Path(__file__).parent.parent / "configs" / "quick.toml", {}), "quick")["gelu"]
    for d_model in (192, 96):
        compare(dataclasses.replace(quick, model=dataclasses.replace(quick.model, d_model=d_model)))


if __name__ == "__main__":
    main()
