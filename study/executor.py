"""Runs of a study in parallel, one process for each core, under one live display."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from errors import Interrupted, UserError
from model.activations import load_plugin
from study.display import StudyDisplay
from training.config import RunConfig
from training.device import cores, pick_device
from training.folder import read_summary
from training.interrupt import Interrupt
from training.loop import train

POLL_SECONDS = 0.1
ORPHAN_SECONDS = 60.0  # in which a run of a study that was killed saves and lets go of its folder


@dataclasses.dataclass
class Job:
    """A run of the study while it executes. What it does is read from its folder."""

    name: str
    config: RunConfig
    folder: Path
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

    `group` is the study's name in wandb.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint.
    """
    on_cpu = all(pick_device(config.train.device).type == "cpu" for config in runs.values())
    parallel = min(len(runs), cores()) if on_cpu else 1
    jobs = [Job(name, _placed(config, group, parallel), folder / name) for name, config in runs.items()]
    for job in jobs:
        job.status = "finished" if read_summary(job.folder) else "waiting"
    with StudyDisplay(folder.name, jobs, parallel) as display:
        _run_jobs(jobs, parallel, plugin, interrupt, display)
        if any(folder.glob("*/wandb/offline-run-*")):
            display.say(f"wandb: kept offline; to upload it later: wandb sync {folder}/*/wandb/offline-run-*")
    if interrupt.signum:
        raise Interrupted(interrupt.signum, f"{group}: stopped; the same command resumes it")
    return [job.name for job in jobs if job.status == "failed"]


def _placed(config: RunConfig, group: str, parallel: int) -> RunConfig:
    """Give a run its share of the cores and its study's name as wandb group, unless the config says otherwise."""
    threads = config.train.threads or max(1, cores() // parallel)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, threads=threads),
        wandb=dataclasses.replace(config.wandb, group=config.wandb.group or group),
    )


def _run_jobs(jobs: list[Job], parallel: int, plugin: Path | None, interrupt: Interrupt, display: StudyDisplay) -> None:
    context = multiprocessing.get_context("forkserver")  # a process that holds torch already: runs start at once
    context.set_forkserver_preload(["study.executor"])
    asked = False
    while any(job.status in ("waiting", "running") for job in jobs):
        running = [job for job in jobs if job.status == "running"]
        waiting = [job for job in jobs if job.status == "waiting"]
        if interrupt.signum and not running:
            return
        if interrupt.signum and not asked:
            asked = True
            for job in running:
                assert job.process is not None
                job.process.terminate()  # SIGTERM: it saves and ends
        elif waiting and len(running) < parallel and not interrupt.signum:
            job = waiting[0]
            job.process = context.Process(target=_child, args=(job.config, job.folder, plugin))
            with _ignoring_ctrl_c():
                job.process.start()
            job.status = "running"
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
    """A process started here ignores Ctrl-C while it imports, until its run takes signals itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _child(config: RunConfig, folder: Path, plugin: Path | None) -> None:
    """Train in a process of its own, its output in log.txt of the run's folder."""
    os.environ.pop("WANDB_RUN_ID", None)  # a sweep's agent gives one, and a study has many runs
    os.setsid()  # Ctrl-C on the terminal reaches the study, which asks each run once
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if plugin:
            load_plugin(plugin)
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
