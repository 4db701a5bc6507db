"""The share of training time that the probes take: the quick study's GELU run, one thread.

Steps without and with probes come in turn, and a measurement follows. In CPU time, which other processes disturb least.

python benchmarks/probes.py [--rounds 5] [--pairs 10]
"""

import statistics
import time

import torch
import tyro
from ours import Training, quick_run
from rounds import ROUNDS, show

from training.probes.probes import Probes, probe_steps


def time_step(training: Training, probes: Probes, step: int) -> tuple[float, float]:
    """Return the seconds of a training step that leads to that step, and those of the probes around it."""
    started = time.process_time()
    probes.keep_before(step)
    training_started = time.process_time()
    training.step()
    training_seconds = time.process_time() - training_started
    probes.follow()
    probes.measure(step)
    return training_seconds, time.process_time() - started - training_seconds


def main(rounds: int = ROUNDS, pairs: int = 10) -> None:
    """Print the times and the share.

    Args:
        rounds: rounds, after one to warm up
        pairs: steps without and with probes in each round
    """
    torch.set_num_threads(1)
    config = quick_run()
    training, factor = Training(config), config.train.probes
    made_of = training.model, training.optimizers, training.data.val, config.steps
    off, on = Probes(*made_of, 0), Probes(*made_of, factor)
    measurements = len(probe_steps(config.steps, factor))
    shares, paths, measured = [], [], []
    for n in range(rounds + 1):
        plain, followed = [], []
        for _ in range(pairs):
            plain.append(time_step(training, off, -1)[0])
            followed.append(time_step(training, on, -1)[1])
        measuring = statistics.median(time_step(training, on, config.steps)[1] for _ in range(3))
        path = statistics.median(followed)
        if n > 0:
            paths.append(path * 1e3)
            measured.append(measuring * 1e3)
            shares.append((path + measurements * measuring / config.steps) / statistics.median(plain))
    show("following the path of the weights, ms a step", paths)
    show(f"a measurement, of which a run of {config.steps} steps has {measurements}, ms", measured, ".0f")
    show("both together, share of training", shares, ".2%")


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/probes.py", description=__doc__)
