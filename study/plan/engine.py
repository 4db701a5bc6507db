"""How the runs of a study share a machine: the engine, the number of processes, the cores of each."""

import dataclasses
from collections.abc import Collection

from errors import UserError
from training.config import RunConfig
from training.device import cores, pick_device


def pick_engine(name: str, runs: Collection[RunConfig]) -> str:
    """Return the engine of that name; `auto` stacks on a GPU, which a small run alone cannot keep busy.

    Raises:
        UserError: runs that are to be compiled, or to train in fp16, are to be stacked.
    """
    settings = {"compile = true": [run.train.compile for run in runs]}
    settings["precision = 'fp16'"] = [run.train.precision == "fp16" for run in runs]
    apart = [setting for setting, found in settings.items() if any(found)]
    if name == "stacked" and apart:
        raise UserError(f"train.{apart[0]} does not go with stacked runs. Give --study.engine=processes.")
    if name != "auto":
        return name
    on_gpu = all(pick_device(run.train.device).type == "cuda" for run in runs)
    return "stacked" if on_gpu and not apart else "processes"


def count_parallel(runs: Collection[RunConfig]) -> int:
    """Return how many runs train at the same time, each in a process: one for each core, or one on a GPU."""
    on_cpu = all(pick_device(run.train.device).type == "cpu" for run in runs)
    return min(len(runs), cores()) if on_cpu else 1


def share_cores(config: RunConfig, parallel: int) -> RunConfig:
    """Give a run its share of the cores where so many train at the same time, unless its config sets the threads."""
    threads = config.train.threads or max(1, cores() // parallel)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, threads=threads))
