"""The record of a run: `metrics.jsonl` first and always; wandb mirrors it and may be absent."""

import json
import math
import os
from pathlib import Path
from typing import Any

from errors import UserError
from training.folder import writing
from training.wandb_mirror import WandbMirror


class Metrics:
    """One JSON record a line, in order of steps. A resumed run cuts the file back to its checkpoint's `offset`."""

    def __init__(self, path: Path, offset: int, mirror: WandbMirror):
        if offset and (not path.exists() or path.stat().st_size < offset):
            raise UserError(f"{path} is shorter than at the last checkpoint: it was cut or replaced. Restore it.")
        self.path = path
        with writing(path, 0):
            self.file = path.open("a+b", buffering=0)  # so that what fails, fails in `log`
        self.file.truncate(offset)
        self.file.seek(offset)
        self.mirror = mirror

    def kept(self) -> int:
        """Return the bytes written so far, once they are on the disk: a checkpoint that names them stays valid."""
        with writing(self.path, 0):
            os.fsync(self.file.fileno())
        return self.file.tell()

    def log(self, record: dict[str, Any]) -> None:
        """Append one record (`step`, `tokens`, `time` and the metrics) and hand it to wandb. Keys are paths."""
        strict = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line, before = json.dumps(strict, allow_nan=False).encode() + b"\n", self.file.tell()
        with writing(self.path, len(line)):
            try:
                written = 0
                while written < len(line):  # a disk may take a part
                    written += self.file.write(line[written:])
            except OSError:
                self.file.seek(self.file.truncate(before))
                raise
        self.mirror.log(record)

    def finish(self, summary: dict[str, Any]) -> None:
        """Give wandb the final figures and the sample."""
        known = ("val/loss", "sample/prompt", "sample/text")  # wandb has the first from the records, with its minimum
        self.mirror.summarize({key: value for key, value in summary.items() if key not in known})
        self.mirror.table("samples", ["prompt", "text"], [[summary["sample/prompt"], summary["sample/text"]]])

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        self.mirror.close(failed=kind is not None)


class Unwritten(Metrics):
    """The record of a rank that does not write."""

    def __init__(self, mirror: WandbMirror):
        self.path = Path(os.devnull)
        self.file = self.path.open("a+b", buffering=0)
        self.mirror = mirror

    def kept(self) -> int:
        """Nothing is written, so nothing is to be kept."""
        return 0
