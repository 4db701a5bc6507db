"""The share of training time that the probes take: the quick study's GELU run, or a larger one, on one thread.

Steps, the path that follows the weights at every step, and measurements come in turn. In CPU time, which other
processes disturb least.

python benchmarks/probes.py [--rounds 5] [--n-layer 6 --d-model 384]
"""

import dataclasses
import time

import torch
import tyro
from ours import Training, quick_run
from rounds import ROUNDS, show, time_in_turn

from data.dataset import prepare
from training.probes.probes import Probes, probe_steps

STEPS = 10  # of a turn


def main(rounds: int = ROUNDS, n_layer: int = 4, d_model: int = 192) -> None:
    """Print the times and the share.

    Args:
        rounds: turns of each
        n_layer: blocks; the quick study has 4
        d_model: width of the residual stream; the quick study has 192
    """
    torch.set_num_threads(1)
    run = quick_run()
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, n_layer=n_layer, d_model=d_model))
    data = prepare(run.data)
    training = Training(run, data.train.tokens_N, data.tokenizer.n_vocab)
    probes = Probes(training.model, training.optimizers, data.val, run.steps, run.train.probes)

    def train() -> None:
        for _ in range(STEPS):
            training.step()

    def follow() -> None:
        for _ in range(STEPS):
            probes.follow()

    def measure_start() -> None:
        probes.keep_before(0)
        probes.measure(0)

    def measure() -> None:
        probes.keep_before(run.steps)
        probes.measure(run.steps)

    works = {"train": train, "follow": follow, "start": measure_start, "measure": measure}
    seconds = time_in_turn(works, rounds, time.process_time)
    later = len(probe_steps(run.steps, run.train.probes)) - 1
    of_run = {name: [one * run.steps / STEPS for one in seconds[name]] for name in ("train", "follow")}
    starts_and_later = zip(seconds["start"], seconds["measure"], strict=True)
    of_run["measure"] = [start + later * measurement for start, measurement in starts_and_later]
    times = zip(of_run["train"], of_run["follow"], of_run["measure"], strict=True)
    for name, values in of_run.items():
        show(f"{name}: seconds of a run", values)
    show("probes, share of training", [(path + measured) / trained for trained, path, measured in times], ".2%")


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/probes.py", description=__doc__)
