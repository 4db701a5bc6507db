"""Runs of a study in processes, under one live display: one run in each, or a stack of runs."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from errors import Interrupted, UserError
from model.plugin import load_plugin
from study.run.display import StudyDisplay
from training.config import RunConfig
from training.device import cores, pick_device
from training.folder import read_summary
from training.interrupt import Interrupt
from training.loop import train, train_stack
from training.stack import shape

POLL_SECONDS = 0.1
LATE = ("torch._dynamo", "wandb.apis.public", "wandb.sdk.launch")  # optimisers and wandb import them: 2 s of each run
ORPHAN_SECONDS = 60.0  # in which a run of a study that was killed saves and lets go of its folder


@dataclasses.dataclass
class Job:
    """A run of the study while it executes, in a process of its own or one that it shares with others of its `stack`.

    What it does is read from its folder.
    """

    name: str
    config: RunConfig
    folder: Path
    stack: int = 0
    process: BaseProcess | None = None
    status: str = "waiting"  # then running, finished or failed
    record: dict[str, Any] = dataclasses.field(default_factory=dict)  # the newest value of each metric
    offset: int = 0

    @property
    def steps_left(self) -> int:
        """Steps still to train."""
        return 0 if self.status in ("finished", "failed") else self.config.steps - self.record.get("step", 0)

    def read_new(self) -> list[dict[str, Any]]:
        """Return the records written since the last call."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.offset:  # cut back by a resumed run
                self.offset = 0
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        try:
            records = [json.loads(line) for line in whole.splitlines()]
        except ValueError:  # cut back and written again between two looks: read it from the start next time
            self.offset = 0
            return []
        self.offset += len(whole + newline)
        for record in records:
            self.record |= record
        return records


def execute(
    runs: dict[str, RunConfig], folder: Path, group: str, plugin: Path | None, interrupt: Interrupt
) -> list[str]:
    """Train every run that is not finished, in `folder/<name>`; return the names of those that failed.

    Each has a process of its own, as many at a time as there are cores, or one at a time on a GPU. `group` is the
    study's name in wandb.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint.
    """
    parallel = at_once(runs.values())
    own = {name: placed(config, group, parallel) for name, config in runs.items()}
    jobs = [Job(name, config, folder / name, stack) for stack, (name, config) in enumerate(own.items())]
    return _execute(jobs, parallel, folder, group, plugin, interrupt)


def execute_stacked(
    runs: dict[str, RunConfig], folder: Path, group: str, plugin: Path | None, interrupt: Interrupt
) -> list[str]:
    """Train as `execute`, but runs that differ in seed and learning rate alone as one batched program.

    One stack at a time, in a process of its own that has all cores.
    """
    own = {name: placed(config, group, 1) for name, config in runs.items()}
    shapes = list(dict.fromkeys(shape(config) for config in own.values()))
    jobs = [Job(name, config, folder / name, shapes.index(shape(config))) for name, config in own.items()]
    return _execute(jobs, 1, folder, group, plugin, interrupt)


def _execute(
    jobs: list[Job], parallel: int, folder: Path, group: str, plugin: Path | None, interrupt: Interrupt
) -> list[str]:
    for job in jobs:
        job.status = "finished" if read_summary(job.folder) else "waiting"
    together = max(Counter(job.stack for job in jobs).values())
    with StudyDisplay(folder.name, jobs, together * parallel) as display:
        _run_jobs(jobs, parallel, plugin, interrupt, display)
        if any(folder.glob("*/wandb/offline-run-*")):
            display.say(f"wandb: kept offline; to upload it later: wandb sync {folder}/*/wandb/offline-run-*")
    if interrupt.signum:
        raise Interrupted(interrupt.signum, f"{group}: stopped; the same command resumes it")
    return [job.name for job in jobs if job.status == "failed"]


def at_once(runs: Collection[RunConfig]) -> int:
    """Return how many of these runs have a process at a time."""
    on_cpu = all(pick_device(config.train.device).type == "cpu" for config in runs)
    return min(len(runs), cores()) if on_cpu else 1


def placed(config: RunConfig, group: str, parallel: int) -> RunConfig:
    """Give a run its share of the cores and its study's name as wandb group, unless the config says otherwise."""
    threads = config.train.threads or max(1, cores() // parallel)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, threads=threads),
        wandb=dataclasses.replace(config.wandb, group=config.wandb.group or group),
    )


def _run_jobs(jobs: list[Job], parallel: int, plugin: Path | None, interrupt: Interrupt, display: StudyDisplay) -> None:
    context = multiprocessing.get_context("forkserver")  # a process that holds torch already: runs start at once
    context.set_forkserver_preload(["study.run.executor", *LATE])
    resource_tracker.ensure_running()  # else the server's start would start it too
    with _ignoring_ctrl_c():
        forkserver.ensure_running()
    asked = False
    while any(job.status in ("waiting", "running") for job in jobs):
        running = [job for job in jobs if job.status == "running"]
        waiting = [job for job in jobs if job.status == "waiting"]
        if interrupt.signum and not running:
            return
        if interrupt.signum and not asked:
            asked = True
            for process in {job.process for job in running}:
                assert process is not None
                process.terminate()  # SIGTERM: it saves and ends
        elif waiting and len({job.stack for job in running}) < parallel and not interrupt.signum:
            stack = [job for job in waiting if job.stack == waiting[0].stack]
            process = context.Process(target=_child, args=({job.folder: job.config for job in stack}, plugin))
            process.start()
            for job in stack:
                job.process, job.status = process, "running"
            continue
        for job in running:
            assert job.process is not None
            alive = job.process.is_alive()  # asked first, so that the last records are not missed
            records = job.read_new()
            if not alive:
                job.status = "finished" if read_summary(job.folder) else "waiting" if asked else "failed"
            display.follow(job, records)
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """The server that is started here, and its children, ignore Ctrl-C until a run takes signals itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _child(runs: dict[Path, RunConfig], plugin: Path | None) -> None:
    """Train a run or a stack of runs in a process of its own, the output in log.txt of the (first) run's folder."""
    os.environ.pop("WANDB_RUN_ID", None)  # a sweep's agent gives one, and a study has many runs
    os.setsid()  # Ctrl-C on the terminal reaches the study, which asks each process once
    folder, config = next(iter(runs.items()))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if plugin:
            load_plugin(plugin)
        if len(runs) > 1:
            train_stack(runs, ORPHAN_SECONDS)
        else:
            train(config, folder, ORPHAN_SECONDS)
    except Interrupted as stopped:
        sys.exit(stopped.code)
    except UserError as error:
        print(error)
        sys.exit(2)
    except FloatingPointError as error:
        print(error)
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
