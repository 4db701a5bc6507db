"""The engine of a Ray cluster: each run is a task on one of its machines (Moritz et al., 2018).

All machines see one file system. A run is its folder, wherever it trains: if its machine dies, it goes on elsewhere.
"""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errors import UserError
from study.run.child import train_with_log
from study.run.job import Job
from training.config import RunConfig

RETRIES = 10  # of a run whose machine or process dies
CODE = str(Path(__file__).resolve().parents[2])
HANDED_ON = ("ACTGPT_CACHE", "HF_HUB_OFFLINE", "WANDB_MODE")  # settings of the user's shell that every machine gets


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "study.engine = 'ray' needs the package ray: pip install -c constraints.txt -e '.[ray]', on every machine."
        ) from None


@contextmanager
def connect_ray(jobs: list[Job]) -> "Iterator[_Cluster]":
    """Join the cluster that RAY_ADDRESS names, or that of this machine. Ray's own handler of signals is taken out.

    Raises:
        UserError: ray is not installed, or there is no cluster.
    """
    ray = import_ray()
    handler = signal.getsignal(signal.SIGTERM)
    settings = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, [CODE, os.environ.get("PYTHONPATH")]))
    try:
        ray.init(address="auto", runtime_env={"env_vars": settings}, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:  # at once if there is no cluster; after minutes if the one in RAY_ADDRESS is gone
        raise UserError(
            "study.engine = 'ray' found no cluster: start one (ray start --head, then ray start --address=… on the "
            "other machines), or name it in RAY_ADDRESS."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield _Cluster(ray, jobs)
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


class _Cluster:
    """The tasks of a cluster. All of them are submitted at the start: Ray decides when and where each one runs."""

    def __init__(self, ray: Any, jobs: list[Job]):
        self.ray = ray
        self.slots = len(jobs)
        # A process for each task: its peak memory is its own.
        self.task = ray.remote(max_calls=1, max_retries=RETRIES)(_train)
        self.references: dict[str, Any] = {}  # by the name of the job
        self.gpu = bool(ray.cluster_resources().get("GPU"))

    def start(self, stack: list[Job]) -> None:
        (job,) = stack
        gpus = int(self.gpu and job.config.train.device != "cpu")
        task = self.task.options(name=job.name, num_cpus=job.config.train.threads, num_gpus=gpus)
        self.references[job.name] = task.remote(job.config, job.folder, Path.cwd())

    def ended(self, jobs: list[Job]) -> list[Job]:
        references = [self.references[job.name] for job in jobs]
        done, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return [job for job in jobs if self.references[job.name] in done]

    def stop(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.ray.cancel(self.references[job.name])  # as Ctrl-C would

    def fault(self, job: Job) -> str:
        # A task that Ray could not start, or whose machine died once too often, has written no reason into its log.
        try:
            return self.ray.get(self.references[job.name])
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def _train(config: RunConfig, folder: Path, cwd: Path) -> str:
    os.chdir(cwd)
    return train_with_log({folder: config})
