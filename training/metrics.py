"""The record of a run: `metrics.jsonl` first and always; wandb mirrors it and may be absent."""

import json
import math
import os
from pathlib import Path
from typing import Any

from files import write_file, writing
from training.wandb_mirror import WandbMirror


class Metrics:
    """One JSON record a line, in order of steps. The file starts as `before`, the records in a run's checkpoint.

    Without a path (in all but the first of several processes) nothing is written.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path | None, before: bytes, mirror: WandbMirror):
        self.path, self.mirror = path, mirror
        if path is None:
            return
        if before and not (path.exists() and path.read_bytes().startswith(before)):
            print(f"warning: {path} was changed; it is restored from the checkpoint. No record is lost.")
        write_file(path, before)

    def log(self, record: dict[str, Any]) -> None:
        """Append one record (`step`, `tokens`, `time` and the metrics) and hand it to wandb. Keys are paths."""
        if self.path:
            line = json.dumps(strict_json(record), allow_nan=False).encode() + b"\n"
            with writing(self.path, len(line)):
                end = self.path.stat().st_size
                try:
                    # The file is closed after each record, so that a full disk is noticed here.
                    with self.path.open("ab") as file:
                        file.write(line)
                except OSError:
                    # A nearly full disk may have taken a part of the line.
                    os.truncate(self.path, end)
                    raise
        self.mirror.log(record)

    def content(self) -> bytes:
        """Return all records as they are in the file: what a checkpoint keeps of them."""
        return self.path.read_bytes() if self.path else b""

    def finish(self, summary: dict[str, Any]) -> None:
        """Give wandb the final figures and the sample."""
        # wandb has the validation loss from the records, with its minimum; the sample becomes a table.
        known = ("val/loss", "sample/prompt", "sample/text")
        self.mirror.summarize({key: value for key, value in summary.items() if key not in known})
        self.mirror.table("samples", ["prompt", "text"], [[summary["sample/prompt"], summary["sample/text"]]])


def strict_json(value: Any) -> Any:
    """Return a value as strict JSON has it: NaN and infinity become null, in dicts and lists too."""
    if isinstance(value, dict):
        return {key: strict_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
