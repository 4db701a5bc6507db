"""The engine of one machine: a process for each run, or for each stack of runs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from study.run.child import train_with_log
from study.run.job import Job
from training.config import RunConfig

# torch and wandb import these late, which would cost each run two seconds
LATE_IMPORTS = ("torch._dynamo", "wandb.apis.public", "wandb.sdk.launch")


@contextmanager
def start_processes(slots: int) -> "Iterator[_Processes]":
    """Yield the engine that trains so many runs, or stacks of runs, at the same time."""
    yield _Processes(slots)


class _Processes:
    """Processes that are forked from one that holds torch already, so that a run starts at once.

    Where a system cannot fork, each process imports torch by itself.
    """

    def __init__(self, slots: int):
        self.slots = slots
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
