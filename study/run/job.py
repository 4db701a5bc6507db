"""A run of a study while it trains: what the study knows of it is read from its folder."""

import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from study.run.workers import claim, has_failed, note_failure
from training.config import RunConfig
from training.contents import RECORD, intact_summary


@dataclass
class Job:
    """A run in a process of its own, or in one that it shares with the other runs of its `stack`."""

    name: str
    config: RunConfig
    folder: Path
    stack: Hashable = None  # equal for the runs of one stack
    status: str = "waiting"  # then running, elsewhere (another command trains it), finished or failed
    record: dict[str, Any] = field(default_factory=dict)  # the newest value of each metric
    offset: int = 0  # bytes of metrics.jsonl that are read
    lock: BaseFileLock | None = None  # this command's claim to the run

    @property
    def steps_left(self) -> int:
        """Steps still to train."""
        return 0 if self.status in ("finished", "failed") else self.config.steps - self.record.get("step", 0)

    def claim(self) -> bool:
        """Claim the run, and return whether it is to be trained. Another command may train it, or have ended it."""
        self.status, self.lock = "waiting", claim(self.folder)
        if self.lock is None:
            self.status = "elsewhere"
        elif intact_summary(self.folder):
            self.end("finished")
        elif has_failed(self.folder):
            self.end("failed")
        return self.status == "waiting"

    def end(self, status: str) -> None:
        """Give up the claim: the run is finished, has failed, or waits again after an interruption."""
        self.status = status
        if status == "failed":
            note_failure(self.folder)
        if self.lock:
            self.lock.release()

    def read_new(self) -> list[dict[str, Any]]:
        """Return the records written since the last call."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.offset:  # a resumed run cuts the file back
                self.offset = 0
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        try:
            records = [{**RECORD.validate_json(line)} for line in whole.splitlines()]
        except ValueError:  # the file was cut back and grew again between two calls: read it from the start next time
            self.offset = 0
            return []
        self.offset += len(whole + newline)
        for record in records:
            self.record |= record
        return records
