"""What a study shows while it runs: a bar for each run and one for all on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from model.size import size
from training.progress import Display, figures

if TYPE_CHECKING:
    from study.run.executor import Job

QUIET_SECONDS = 30.0  # between two lines on the whole study, where there is no terminal


def match(models: Iterable[tuple[ModelConfig, int]]) -> list[str]:
    """Return a line for each model (config, vocabulary): its parameters and FLOPs, and how they match the first's."""
    costs = {(model, n_vocab): size(model, n_vocab) for model, n_vocab in models}
    first = next(iter(costs.values()))
    return [
        f"{model.activation:>12}  {cost.total:>12,} parameters ({cost.total / first.total - 1:+.2%})  "
        f"{cost.flops_per_token / 1e6:>9,.1f} MFLOP per training token "
        f"({cost.flops_per_token / first.flops_per_token - 1:+.2%})"
        for (model, _), cost in costs.items()
    ]


class StudyDisplay(Display):
    """The watcher's view of a study: that of its steps in all, and a bar for each run."""

    def __init__(self, name: str, jobs: list["Job"], parallel: int):
        super().__init__(name, 0, sum(job.steps_left for job in jobs))
        self.jobs, self.parallel = jobs, parallel
        self.spoke = time.monotonic()
        self.first: dict[str, dict[str, Any]] = {}  # record of each run that this process saw
        self.speeds: dict[str, float] = {}  # steps per second of each run since
        if self.bar:
            self.tasks = {
                job.name: self.bar.add_task(
                    job.name,
                    total=job.config.steps,
                    completed=job.config.steps - job.steps_left,
                    record={},
                    start=False,
                )
                for job in self.jobs
            }

    def follow(self, job: "Job", records: list[dict[str, Any]]) -> None:
        """Show what is new of a run."""
        for record in records:
            first = self.first.setdefault(job.name, record)
            if record["step"] > first["step"]:
                self.speeds[job.name] = (record["step"] - first["step"]) / (record["time"] - first["time"])
        ended = job.status in ("finished", "failed")
        if self.bar:
            self.bar.start_task(self.tasks[job.name])
            label = f"{job.name} (failed)" if job.status == "failed" else job.name
            self.bar.update(
                self.tasks[job.name], completed=job.record.get("step", 0), record=job.record, description=label
            )
            self.update({"step": self.steps - sum(j.steps_left for j in self.jobs)})
        else:
            for record in records:
                if "val/loss" in record:
                    self.say(f"{job.name}  step {record['step']}/{job.config.steps}  {figures(record)}")
            if time.monotonic() - self.spoke > QUIET_SECONDS and (left := self.seconds_left()):
                self.spoke = time.monotonic()
                self.say(f"{self.name}: about {left / 60:.0f} min left")
        if ended and job.status == "failed":
            path = job.folder / "log.txt"
            log = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
            self.say(f"{job.name} failed; the others go on. {path} ends with: {log[-1] if log else '(no log)'}")

    def seconds_left(self) -> float | None:
        """Estimate the time left from the speed of the runs so far; None before the first records."""
        if not self.speeds:
            return None
        left = [job.steps_left for job in self.jobs]
        speed = sum(self.speeds.values()) / len(self.speeds)
        return max(sum(left) / self.parallel, max(left)) / speed
