"""What a study shows while it runs: a bar for each run and one for all on a terminal, plain lines elsewhere."""

import time
from typing import Any

from study.run.job import Job
from training.progress import Display, figures

QUIET_SECONDS = 30.0  # between two lines on the whole study, where there is no terminal


class StudyDisplay(Display):
    """The steps of all runs together, and each run."""

    def __init__(self, name: str, jobs: list[Job]):
        super().__init__(name, 0, sum(job.steps_left for job in jobs))
        self.jobs = jobs
        self.last_line = time.monotonic()
        self.first: dict[str, dict[str, Any]] = {}  # the first record of each run that this process has seen
        self.speeds: dict[str, float] = {}  # steps per second of each run since then
        if self.bar:
            self.tasks = {}
            for job in jobs:
                steps = job.config.steps
                self.tasks[job.name] = self.bar.add_task(
                    job.name, total=steps, completed=steps - job.steps_left, record={}, start=False
                )

    def follow(self, job: Job, records: list[dict[str, Any]]) -> None:
        """Show what is new of a run."""
        for record in records:
            first = self.first.setdefault(job.name, record)
            if record["step"] > first["step"]:
                self.speeds[job.name] = (record["step"] - first["step"]) / (record["time"] - first["time"])
        if self.bar:
            self._move_bars(job)
        else:
            self._print_lines(job, records)
        if job.status == "failed":
            path = job.folder / "log.txt"
            lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
            self.say(f"{job.name} failed; the others go on. {path} ends with: {lines[-1] if lines else '(no log)'}")

    def _move_bars(self, job: Job) -> None:
        assert self.bar
        task = self.tasks[job.name]
        label = f"{job.name} (failed)" if job.status == "failed" else job.name
        self.bar.start_task(task)
        self.bar.update(task, completed=job.record.get("step", 0), record=job.record, description=label)
        self.update({"step": self.steps - sum(job.steps_left for job in self.jobs)})

    def _print_lines(self, job: Job, records: list[dict[str, Any]]) -> None:
        for record in records:
            if "val/loss" in record:
                self.say(f"{job.name}  step {record['step']}/{job.config.steps}  {figures(record)}")
        seconds = self.seconds_left()
        if seconds and time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            self.say(f"{self.name}: about {seconds / 60:.0f} min left")

    def seconds_left(self) -> float | None:
        """Estimate the time left from the speed of the runs that train now; None before their first records."""
        speeds = [self.speeds[job.name] for job in self.jobs if job.status == "running" and job.name in self.speeds]
        if not speeds:
            return None
        steps = [job.steps_left for job in self.jobs]
        # No study ends before its longest run, however many run at the same time.
        return max(sum(steps) / sum(speeds), max(steps) / (sum(speeds) / len(speeds)))
