"""The share of training time that the probes take: the quick study's GELU run, one thread.

Steps, the path that follows the weights at every step, and measurements come in turn. In CPU time, which other
processes disturb least.

python benchmarks/probes.py [--rounds 5]
"""

import time

import torch
import tyro
from ours import Training, quick_run
from rounds import ROUNDS, show, time_in_turn

from data.dataset import prepare
from training.probes.probes import Probes, probe_steps

STEPS = 10  # of a turn


def main(rounds: int = ROUNDS) -> None:
    """Print the times and the share.

    Args:
        rounds: turns of each
    """
    torch.set_num_threads(1)
    run = quick_run()
    data = prepare(run.data)
    training = Training(run, data.train.tokens_N, data.tokenizer.n_vocab)
    probes = Probes(training.model, training.optimizers, data.val, run.steps, run.train.probes)

    def train() -> None:
        for _ in range(STEPS):
            training.step()

    def follow() -> None:
        for _ in range(STEPS):
            probes.follow()

    def measure() -> None:
        probes.keep_before(run.steps)
        probes.measure(run.steps)

    seconds = time_in_turn({"train": train, "follow": follow, "measure": measure}, rounds, time.process_time)
    measurements = len(probe_steps(run.steps, run.train.probes))
    of_run = {name: [one * run.steps / STEPS for one in seconds[name]] for name in ("train", "follow")}
    of_run["measure"] = [one * measurements for one in seconds["measure"]]
    times = zip(of_run["train"], of_run["follow"], of_run["measure"], strict=True)
    for name, values in of_run.items():
        show(f"{name}: seconds of a run", values)
    show("probes, share of training", [(path + measured) / trained for trained, path, measured in times], ".2%")


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/probes.py", description=__doc__)
