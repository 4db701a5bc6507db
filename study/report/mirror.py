"""The mirror of a study in wandb: beside the runs of its group one more, of what the report says of all of them."""

import dataclasses
import hashlib
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from study.judge.arms import short
from study.judge.effects import Row
from study.judge.statistics import paired
from study.report.drawing import common
from study.report.figures import difference_curves
from study.report.sentences import headline, scope
from study.report.spreadsheet import arm_figures
from training.config import WandbConfig
from training.wandb_mirror import WandbMirror

PLACES = ("*/wandb", "tune/*/wandb", "wandb")  # of the wandb runs in a study's folder


def mirror_study(
    rows: Sequence[Row], folder: Path, where: WandbConfig, failed: bool, say: Callable[[str], None] = print
) -> None:
    """Show a study's arms, differences and report in wandb.

    The wandb run's id follows from the study, so that a repetition takes the former one's place.
    """
    plan = (folder / "study.toml").read_text("utf-8")
    # Another plan in a folder of the same name is another study.
    run_id = hashlib.sha256(f"{folder.name}\n{plan}".encode()).hexdigest()[:16]
    where = dataclasses.replace(where, group=where.group or folder.name)
    mirror = WandbMirror(where, folder, run_id, say, job_type="study", config=tomllib.loads(plan))
    for record in difference_records(rows):
        mirror.log(record)
    mirror.table("arms", *arms_table(rows))
    if (folder / "report.html").exists():
        mirror.page("report", folder / "report.html")
    mirror.summarize({"finding": headline(rows), "scope": scope(rows)})
    started = mirror.run is not None
    mirror.close(failed)
    patterns = _offline_runs(folder)
    if started and patterns:
        # Where the study's own run is online, a run that trained on its own has been cut off.
        why = mirror.offline or "wandb could not be reached"
        say(f"wandb: kept offline, since {why}; to upload it later: wandb sync {' '.join(patterns)}")


def _offline_runs(folder: Path) -> list[str]:
    """Return the patterns, for a shell, of a study's wandb runs that are not uploaded yet."""
    patterns = []
    for place in PLACES:
        # wandb marks what it has uploaded.
        left = [run for run in folder.glob(f"{place}/offline-run-*") if not any(run.glob("*.wandb.synced"))]
        if left:
            patterns.append(f"{quote(str(folder))}/{place}/offline-run-*")
    return patterns


def difference_records(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Return, in order of tokens, the difference of each arm to its reference, with its 95 % paired t interval.

    The curves are those of the report's figure. One seed has no interval.
    """
    # wandb draws a metric from the records that have it, so that arms scored at other tokens share the list.
    records: dict[float, dict[str, float]] = {}
    names = metric_names([row.arm.label for row in rows])
    for row, name in zip(rows, names, strict=True):
        differences = {} if row.is_reference else common(difference_curves(row))
        for tokens, values in differences.items():
            effect = paired(values)
            record = records.setdefault(tokens, {"tokens": tokens})
            record[f"difference/{name}/mean"] = effect.mean
            if effect.n > 1:
                record[f"difference/{name}/low"] = effect.low
                record[f"difference/{name}/high"] = effect.high
    return [records[tokens] for tokens in sorted(records)]


def metric_names(labels: Sequence[str]) -> list[str]:
    """Return each label as a part of a metric's name: wandb can sort and filter by letters, digits and _ alone."""
    names: list[str] = []
    for label in labels:
        name = re.sub(r"\W+", "_", label)
        while name in names:  # x=1 and x=-1, say
            name += "_"
        names.append(name)
    return names


def arms_table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return the titles and one line for each arm: what distinguishes it, then its figures, None where it has none."""
    # A row of wandb's table can be grouped and filtered by each setting, so that each has a column of its own.
    fields = list(dict.fromkeys(key for row in rows for key in row.arm.parts))
    lines = []
    for row in rows:
        parts = [row.arm.runs[0].settings.get(field, row.arm.parts.get(field)) for field in fields]
        lines.append([*parts, *arm_figures(row).values()])
    return [*short(fields), *arm_figures(rows[0])], lines
