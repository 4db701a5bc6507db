"""The runs of a study, trained and watched under one live display, in processes of this machine or of a Ray cluster."""

import time
from pathlib import Path
from typing import Protocol

from errors import Interrupted
from study.plan.engine import count_parallel, share_cores
from study.run.display import StudyDisplay
from study.run.job import Job
from study.run.processes import start_processes
from study.run.ray_engine import connect_ray
from training.config import RunConfig
from training.contents import intact_summary
from training.device import cores
from training.interrupt import Interrupt
from training.stack import shape

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between two looks for a run that other commands have left


class Engine(Protocol):
    """What starts jobs, in processes of this machine or of others; `slots` is how many stacks it trains at once."""

    slots: int

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


def execute(runs: dict[str, RunConfig], folder: Path, engine: str, interrupt: Interrupt) -> list[str]:
    """Train every run that is not finished, in `folder/<name>`, and return the names of those that failed.

    `engine` is "processes" (each run has a process of its own), "stacked" (runs that differ only in seed and learning
    rate train as one batched program, one program at a time), or "ray" (each run is a task of a cluster).

    Raises:
        UserError: there is no Ray cluster.
        Interrupted: a signal came; every run has written a checkpoint.
    """
    if engine == "processes":
        parallel = count_parallel(runs.values())
    elif engine == "stacked":
        parallel = 1
    else:
        parallel = cores()  # a run takes one core of its machine, unless its config asks for more
    jobs = []
    for name, config in runs.items():
        config = share_cores(config, parallel)
        jobs.append(Job(name, config, folder / name, stack=shape(config) if engine == "stacked" else name))
        if intact_summary(folder / name):
            jobs[-1].status = "finished"
    starting = connect_ray(jobs) if engine == "ray" else start_processes(parallel)
    with starting as started, StudyDisplay(folder.name, jobs) as display:
        _run_jobs(jobs, started, interrupt, display)
    if interrupt.signum:
        raise Interrupted(interrupt.signum, "stopped; the same command resumes it")
    return [job.name for job in jobs if job.status == "failed"]


def _run_jobs(jobs: list[Job], engine: Engine, interrupt: Interrupt, display: StudyDisplay) -> None:
    """Train until every run is finished or has failed, here or in another command; or until a signal has come."""
    stopping, waits, next_look = False, False, 0.0
    while True:
        running = _with_status(jobs, "running")
        left = _with_status(jobs, "waiting", "elsewhere")
        if not running and (interrupt.signum or not left):
            return
        if interrupt.signum and not stopping:
            stopping = True
            engine.stop(running)
        if left and not stopping and time.monotonic() >= next_look and _has_room(engine, jobs):
            if _start_next(left, engine, display):
                continue
            next_look = time.monotonic() + LOOK_SECONDS
            elsewhere = _with_status(left, "elsewhere")
            if elsewhere and not running and not waits:
                waits = True
                more = f" and {len(elsewhere) - 1} more" * (len(elsewhere) > 1)
                display.say(f"waiting for {elsewhere[0].name}{more}, trained by other commands")
        # Who has ended is asked before the records are read, so that the last records are not missed.
        ended = engine.ended(running)
        for job in running:
            records = job.read_new()
            if job in ended:
                unfinished = "waiting" if stopping else "failed"
                job.end("finished" if intact_summary(job.folder) else unfinished)
            if job.status == "failed" and (fault := engine.fault(job)):
                display.say(f"{job.name}: {fault}")
            display.follow(job, records)
        time.sleep(POLL_SECONDS)


def _has_room(engine: Engine, jobs: list[Job]) -> bool:
    """Whether this command may train one more stack at the same time."""
    left = {job.stack for job in _with_status(jobs, "waiting", "elsewhere", "running")}
    # Three runs on two cores, two at a time, would leave a core idle while the third trains. Three at a time do not.
    # Where other commands train too, one of them may have a core for the third.
    last = len(left) < 2 * engine.slots and not _with_status(jobs, "elsewhere")
    return last or len({job.stack for job in _with_status(jobs, "running")}) < engine.slots


def _start_next(left: list[Job], engine: Engine, display: StudyDisplay) -> bool:
    """Start the first stack of which any run is free, and return whether there is one."""
    stack: list[Job] = []
    for shared in dict.fromkeys(job.stack for job in left):
        stack = [job for job in left if job.stack == shared and job.claim()]
        if stack:
            break
    for job in left:
        if job.status != "waiting":  # another command trains it, or has ended it
            job.read_new()
            display.follow(job, [])
    if stack:
        engine.start(stack)
    for job in stack:
        job.status = "running"
    return bool(stack)


def _with_status(jobs: list[Job], *statuses: str) -> list[Job]:
    return [job for job in jobs if job.status in statuses]
