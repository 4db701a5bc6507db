"""Training steps on two threads, alone and beside other work, with several settings of OpenMP's waiting threads.

Threads that wait for each other spin. On a busy machine they then keep the core from the thread that they wait for.
Each setting has a process of its own, and all take turns.

python benchmarks/threads.py [--rounds 5] [--busy 2]
"""

import multiprocessing
import os

import numpy as np
import torch
import tyro
from ours import Training
from rounds import ROUNDS, OwnProcess, Work, ratio, show, time_in_turn

from model.config import ModelConfig
from training.config import RunConfig, TrainConfig
from training.device import keep_memory

SIZES = {  # name: layers, heads, width, context, batch
    "char": (4, 4, 128, 64, 12),
    "quick": (4, 4, 96, 64, 32),
    "6x256": (6, 4, 256, 256, 8),
}
SETTINGS = {  # name: environment, read when torch is imported
    "torch's default": {},
    "bounded spin": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
STEPS = 5


def make(size: str, setting: str) -> Work:
    """Return a turn of training steps."""
    layers, heads, width, context, batch = SIZES[size]
    network = ModelConfig(n_layer=layers, n_head=heads, d_model=width, context=context)
    config = RunConfig(model=network, train=TrainConfig(batch_size=batch, device="cpu"))
    torch.set_num_threads(2)
    keep_memory()
    training = Training(config, np.random.default_rng(0).integers(1024, size=100_000), 1024)

    def turn() -> None:
        for _ in range(STEPS):
            training.step()

    return turn


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


def started(size: str, setting: str) -> OwnProcess:
    """Return the process of a setting. Its environment has to be there before it starts, since it imports torch."""
    changed = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    before = {name: os.environ.pop(name, None) for name in changed}
    os.environ.update(SETTINGS[setting])
    process = OwnProcess(make, size, setting)
    process()
    for name in changed:
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in before.items() if value is not None})
    return process


def main(rounds: int = ROUNDS, busy: int = 2) -> None:
    """Print the speed of each setting against torch's default.

    Args:
        rounds: turns of each setting
        busy: processes beside it that never wait
    """
    for size in SIZES:
        processes = {setting: started(size, setting) for setting in SETTINGS}
        for others in (0, busy):
            beside = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(others)]
            for process in beside:
                process.start()
            seconds = time_in_turn(processes, rounds)
            for process in beside:
                process.terminate()
            default, *settings = SETTINGS
            for setting in settings:
                speeds = ratio(seconds[default], seconds[setting])
                show(f"{size}, {others} other processes: speed of {setting} / {default}", speeds)
        for process in processes.values():
            process.close()


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/threads.py", description=__doc__)
