"""`results.csv`: one table of all runs, with what the table of arms says of each."""

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from files import replacing
from study.judge.effects import Row
from study.judge.results import RunResult, Study


def write_csv(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Write a row for each run: its place and status, its settings by `section.field`, the numbers of its summary.

    `stage` is `final` for the runs that count and `tune` for those that chose a learning rate. The columns `arm/…` are
    those of the table of arms, and equal for all runs of an arm. What a run does not have stays empty.
    """
    arms = {}
    for row in rows:
        columns = {f"arm/{name}": figure for name, figure in arm_figures(row).items()}
        for run in itertools.chain(row.arm.runs, row.arm.bracket):
            arms[run.folder] = {"arm/label": row.arm.label} | columns
    lines = []
    for stage, runs in (("final", study.runs), ("tune", study.tuning)):
        for run in runs:
            # Tuning runs lie one folder deeper, in tune/.
            home = run.folder.parent if stage == "final" else run.folder.parent.parent
            line: dict[str, Any] = {"study": home.name, "stage": stage, "run": run.name, "status": run.status}
            lines.append(line | _run_columns(run) | arms.get(run.folder, {}))
    # A dict keeps the order of first appearance, which a set would not.
    fields = dict.fromkeys(key for line in lines for key in line)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(fields), lineterminator="\n")
        table.writeheader()
        table.writerows({key: _plain(value) for key, value in line.items()} for line in lines)


def arm_figures(row: Row) -> dict[str, Any]:
    """Return the figures of an arm by name, None where it has none: the columns `arm/…` here, and wandb's table."""
    # The reference's difference to itself is 0 by construction, and no result.
    final = None if row.is_reference else row.final
    figures = {
        "seeds": row.arm.seeds,
        "val_loss": row.arm.mean("val/loss"),
        "sd": row.arm.sd("val/loss"),
        "reference": row.reference,
        "difference": final and final.mean,
        "low": final and final.low,
        "high": final and final.high,
        "p": row.p,
        "verdict": row.verdict,
        "seeds_to_decide": row.seeds_needed,
        "can_find": row.detectable,
        "tuned_lr": row.arm.lr if row.arm.tuning else None,
        "parameters": row.arm.cost("params/total"),
        "tokens_per_s": row.arm.cost("perf/tokens_per_s"),
    }
    return {
        name: None if isinstance(figure, float) and math.isnan(figure) else figure for name, figure in figures.items()
    }


def _run_columns(run: RunResult) -> dict[str, Any]:
    # Dictionaries, such as the environment, have no place in a cell.
    columns = run.settings | {"train.lr": run.lr, "data/fingerprint": run.fingerprint}
    for key in run.summary or {}:
        if key not in run.settings and run.final(key) is not None:
            columns[key] = run.final(key)
    return columns


def _plain(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: such text gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
