"""The mirror of a study in wandb: beside the runs of its group one more, which holds the table of its arms."""

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from study.judge.arms import short
from study.judge.effects import Row
from study.report.table import headline, scope
from training.config import WandbConfig
from training.wandb_mirror import WandbMirror


def mirror_study(
    rows: Sequence[Row], folder: Path, where: WandbConfig, failed: bool, say: Callable[[str], None] = print
) -> None:
    """Show a study's arms in wandb. The wandb run's id follows from the study, so that a repetition updates it."""
    plan = (folder / "study.toml").read_text("utf-8")
    run_id = hashlib.sha256(f"{folder.name}\n{plan}".encode()).hexdigest()[:16]
    where = dataclasses.replace(where, group=where.group or folder.name)
    mirror = WandbMirror(where, folder, run_id, say, job_type="study", config=tomllib.loads(plan))
    mirror.table("arms", *arms_table(rows))
    mirror.summarize({"finding": headline(rows), "scope": scope(rows)})
    mirror.close(failed)


def arms_table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and one line an arm: what sets it apart, then its figures, None where it has none."""
    fields = [*dict.fromkeys(key for row in rows for key in row.arm.parts)]
    names = ["seeds", "val loss", "sd", f"vs {rows[0].reference}", "low", "high", "p (Holm)", "verdict"]
    lines = []
    for row in rows:
        arm, effect = row.arm, None if row.is_reference else row.final
        figures = [arm.seeds, arm.mean("val/loss"), arm.sd("val/loss")]
        figures += [effect.mean, effect.low, effect.high, row.p] if effect else [None] * 4
        figures += [
            row.verdict,
            arm.lr if arm.tuning else None,
            arm.mean("params/total"),
            arm.mean("perf/tokens_per_s"),
        ]
        parts = [arm.runs[0].settings.get(field, arm.parts.get(field)) for field in fields]
        lines.append(parts + [None if isinstance(x, float) and math.isnan(x) else x for x in figures])
    return [*short(fields), *names, "tuned lr", "parameters", "tokens/s"], lines
