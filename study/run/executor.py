"""The runs of a study, trained and watched under one live display, on whatever engine starts them."""

import time
from collections import Counter
from pathlib import Path
from typing import Protocol

from errors import Interrupted
from study.run.display import StudyDisplay
from study.run.job import Job
from training.contents import intact_summary
from training.interrupt import Interrupt

POLL_SECONDS = 0.1


class Engine(Protocol):
    """What starts jobs, in processes of this machine or of others.

    `slots` is how many stacks are started before one has ended; `parallel` is how many of them train at the same time.
    """

    slots: int
    parallel: int

    def start(self, stack: list[Job]) -> None:
        """Start the runs of a stack in one process."""

    def ended(self, jobs: list[Job]) -> list[Job]:
        """Return those of these jobs whose process has ended."""
        ...

    def stop(self, jobs: list[Job]) -> None:
        """Ask the processes of these jobs to save and end."""

    def fault(self, job: Job) -> str:
        """Return why a job failed, where its log cannot say it; else nothing."""
        ...


def execute(jobs: list[Job], engine: Engine, folder: Path, interrupt: Interrupt) -> list[str]:
    """Train every job that is not finished and return the names of those that failed.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint.
    """
    for job in jobs:
        job.status = "finished" if intact_summary(job.folder) else "waiting"
    largest_stack = max(Counter(job.stack for job in jobs).values())
    with StudyDisplay(folder.name, jobs, largest_stack * engine.parallel) as display:
        _run_jobs(jobs, engine, interrupt, display)
    if interrupt.signum:
        raise Interrupted(interrupt.signum, "stopped; the same command resumes it")
    return [job.name for job in jobs if job.status == "failed"]


def _run_jobs(jobs: list[Job], engine: Engine, interrupt: Interrupt, display: StudyDisplay) -> None:
    stopping = False
    while True:
        running = [job for job in jobs if job.status == "running"]
        waiting = [job for job in jobs if job.status == "waiting"]
        if not running and (interrupt.signum or not waiting):
            return
        if interrupt.signum and not stopping:
            stopping = True
            engine.stop(running)
        if waiting and not interrupt.signum and len({job.stack for job in running}) < engine.slots:
            stack = [job for job in waiting if job.stack == waiting[0].stack]
            engine.start(stack)
            for job in stack:
                job.status = "running"
            continue
        # Who has ended is asked before the records are read, so that the last records are not missed.
        ended = engine.ended(running)
        for job in running:
            records = job.read_new()
            if job in ended:
                unfinished = "waiting" if stopping else "failed"
                job.status = "finished" if intact_summary(job.folder) else unfinished
            if job.status == "failed" and (fault := engine.fault(job)):
                display.say(f"{job.name}: {fault}")
            display.follow(job, records)
        time.sleep(POLL_SECONDS)
