"""Runs of a study over the machines of a Ray cluster, each a task (Moritz et al., 2018).

All machines see one file system: a run is its folder, wherever it trains, and goes on from it elsewhere if its machine
dies.
"""

import importlib
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from errors import Interrupted, UserError
from model.plugin import load_plugin
from study.run.display import StudyDisplay
from study.run.executor import ORPHAN_SECONDS, POLL_SECONDS, Job, placed
from training.config import RunConfig
from training.device import cores
from training.folder import read_summary
from training.interrupt import Interrupt
from training.loop import train

RETRIES = 10  # of a run whose machine or process dies
CODE = str(Path(__file__).resolve().parents[2])
HANDED_ON = ("ACTGPT_CACHE", "HF_HUB_OFFLINE", "WANDB_MODE")  # settings of the user's shell that hold everywhere


def package() -> Any:
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


def execute_ray(
    runs: dict[str, RunConfig], folder: Path, group: str, plugin: Path | None, interrupt: Interrupt
) -> list[str]:
    """Train every run that is not finished, as `study.run.executor.execute` does, on the machines of a Ray cluster.

    Raises:
        UserError: there is no ray, or no cluster.
        Interrupted: a signal came; every run has written a checkpoint.
    """
    jobs = [Job(name, placed(config, group, cores()), folder / name) for name, config in runs.items()]
    for job in jobs:
        job.status = "finished" if read_summary(job.folder) else "running"
    ray = package()
    with _connected(ray):
        total = ray.cluster_resources()
        gpu = bool(total.get("GPU")) and any(config.train.device != "cpu" for config in runs.values())
        threads = max((job.config.train.threads for job in jobs), default=1)
        parallel = int(total["GPU"] if gpu else total.get("CPU", 1) // threads)
        with StudyDisplay(folder.name, jobs, max(1, min(parallel, len(jobs)))) as display:
            _run_jobs(ray, jobs, gpu, plugin, interrupt, display)
    if interrupt.signum:
        raise Interrupted(interrupt.signum, f"{group}: stopped; the same command resumes it")
    return [job.name for job in jobs if job.status == "failed"]


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or that of this machine; signals stay ours."""
    handler = signal.getsignal(signal.SIGTERM)
    settings = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, [CODE, os.environ.get("PYTHONPATH")]))
    try:
        ray.init(address="auto", runtime_env={"env_vars": settings}, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:  # at once where there is none, after minutes where RAY_ADDRESS names one that is gone
        raise UserError(
            "study.engine = 'ray' found no cluster: start one (ray start --head, then ray start --address=… on the "
            "other machines), or name it in RAY_ADDRESS."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def _run_jobs(
    ray: Any, jobs: list[Job], gpu: bool, plugin: Path | None, interrupt: Interrupt, display: StudyDisplay
) -> None:
    # a process for each run, as everywhere: its peak memory is its own
    task = ray.remote(max_calls=1, max_retries=RETRIES)(_train)
    pending = {
        task.options(
            name=job.name, num_cpus=job.config.train.threads, num_gpus=int(gpu and job.config.train.device != "cpu")
        ).remote(job.config, job.folder, plugin, Path.cwd()): job
        for job in jobs
        if job.status == "running"
    }
    asked = False
    while pending:
        if interrupt.signum and not asked:
            asked = True
            for reference in pending:
                ray.cancel(reference)  # as Ctrl-C would: it saves and ends
        done, _ = ray.wait(list(pending), timeout=POLL_SECONDS)
        for job in pending.values():
            if records := job.read_new():
                display.follow(job, records)
        for reference in done:
            job = pending.pop(reference)
            job.status = "finished" if read_summary(job.folder) else "waiting" if asked else "failed"
            if job.status == "failed":
                try:
                    ray.get(reference)
                except Exception as error:  # it never came to write a log, or died once too often
                    display.say(f"{job.name}: {type(error).__name__}: {error}")
            display.follow(job, job.read_new())


def _train(config: RunConfig, folder: Path, plugin: Path | None, cwd: Path) -> None:
    """Train in a process of the cluster, its output in log.txt of the run's folder."""
    os.chdir(cwd)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            if plugin:
                load_plugin(plugin)
            train(config, folder, ORPHAN_SECONDS)
        except (UserError, FloatingPointError, Interrupted) as error:
            print(error)
        except Exception:
            traceback.print_exc()
