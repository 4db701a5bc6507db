"""The engine of one machine: a process for each run, or for each stack of runs."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from study.plan.engine import count_parallel, share_cores
from study.run.child import train_with_log
from study.run.executor import execute
from study.run.job import Job
from training.config import RunConfig
from training.interrupt import Interrupt
from training.stack import shape

# torch and wandb import these late, which would cost each run two seconds
LATE_IMPORTS = ("torch._dynamo", "wandb.apis.public", "wandb.sdk.launch")


def execute_processes(runs: dict[str, RunConfig], folder: Path, interrupt: Interrupt) -> list[str]:
    """Train every run that is not finished, in `folder/<name>`; return the names of those that failed.

    Each run has a process of its own, as many at a time as there are cores, or one at a time on a GPU.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint.
    """
    parallel = count_parallel(runs.values())
    jobs = []
    for number, (name, config) in enumerate(runs.items()):
        jobs.append(Job(name, share_cores(config, parallel), folder / name, stack=number))
    return execute(jobs, _Processes(parallel), folder, interrupt)


def execute_stacked(runs: dict[str, RunConfig], folder: Path, interrupt: Interrupt) -> list[str]:
    """Train as `execute_processes`, but runs that differ only in seed and learning rate as one batched program.

    One stack at a time, in a process that has all cores.
    """
    configs = {name: share_cores(config, parallel=1) for name, config in runs.items()}
    shapes = list(dict.fromkeys(shape(config) for config in configs.values()))
    jobs = []
    for name, config in configs.items():
        jobs.append(Job(name, config, folder / name, stack=shapes.index(shape(config))))
    return execute(jobs, _Processes(1), folder, interrupt)


class _Processes:
    """Processes that are forked from one that holds torch already, so that a run starts at once.

    Where a system cannot fork, each process imports torch by itself.
    """

    def __init__(self, parallel: int):
        self.slots = self.parallel = parallel
        self.processes: dict[str, BaseProcess] = {}  # by the name of the job
        self.reasons: dict[str, Connection] = {}  # why a job failed, where its log has no room for that
        if "forkserver" not in multiprocessing.get_all_start_methods():  # as on Windows
            self.context = multiprocessing.get_context("spawn")
            return
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["study.run.child", *LATE_IMPORTS])
        resource_tracker.ensure_running()  # or the server would start it, with its own handling of signals
        # The server and its children ignore Ctrl-C, until a run handles signals itself: the study asks each run once.
        main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            forkserver.ensure_running()
        finally:
            if main:
                signal.signal(signal.SIGINT, handler)

    def start(self, stack: list[Job]) -> None:
        runs = {job.folder: job.config for job in stack}
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_child, args=(runs, sender))
        process.start()
        sender.close()
        for job in stack:
            self.processes[job.name], self.reasons[job.name] = process, receiver

    def ended(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if not self.processes[job.name].is_alive()]

    def stop(self, jobs: list[Job]) -> None:
        for process in {self.processes[job.name] for job in jobs}:
            process.terminate()

    def fault(self, job: Job) -> str:
        # The kernel kills a process when memory is short, and its log cannot say so.
        code = self.processes[job.name].exitcode or 0
        if code < 0:
            return f"its process was killed by signal {-code}"
        with suppress(EOFError):  # it ended without a word
            if self.reasons[job.name].poll():
                return self.reasons[job.name].recv()
        return ""


def _child(runs: dict[Path, RunConfig], reason: Connection) -> None:
    os.environ.pop("WANDB_RUN_ID", None)  # a sweep's agent sets one id, and a study has many runs
    if hasattr(os, "setsid"):  # Windows has none
        os.setsid()  # Ctrl-C on the terminal reaches only the study, which asks each process once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said = train_with_log(runs)[:1000]  # a pipe that nobody reads yet has room for more
    for _ in runs:  # every run of a stack is asked
        reason.send(said)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
