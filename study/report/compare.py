"""Runs side by side: the table in the terminal, the report, and the figures of every run, in one folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from errors import UserError, unknown
from study.judge.arms import joined
from study.judge.effects import Row, compare_arms
from study.judge.results import Run, load_study, write_csv
from study.report.page import sections, write_report
from study.report.table import columns, cost_columns, headline, notes, scope

BESIDE = ("results.csv", "verdict.html")  # the report


def compare(
    paths: Sequence[Path], reference: str | None = None, out: Path | None = None, plugin: Path | None = None
) -> list[Row]:
    """Print the table of the runs, write their report, and return the table's rows.

    The report stands in the study's folder, or in the working directory where several folders are named, unless `out`
    says otherwise; its figures as pictures (`loss.png` and so on) and `results.csv` stand beside it. The reference is
    the study's own unless it is given. `plugin` is the file that added activations to the registry.

    Raises:
        UserError: a path holds no run, no arm is the reference given, or the report cannot be written there.
    """
    if out and (out.suffix == ".png" or out.name in BESIDE):
        raise UserError(f"--out={out}: a file of that name stands beside the report. Name it report.html, for one.")
    study = load_study(paths)
    rows = compare_arms(study, reference)
    if reference not in (None, rows[0].reference):  # another took its place
        raise UserError(unknown("reference", reference, dict.fromkeys(name for row in rows for name in row.arm.names)))
    print_table(rows, notes(rows, study))
    path = out or (paths[0] if len(paths) == 1 else Path()) / "report.html"
    try:
        parts = sections(study, rows, _reproduce(paths, study.runs, plugin))
        write_report(parts, rows, path, " and ".join(p.resolve().name for p in paths))
        write_csv(study, path.with_name("results.csv"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}. Choose another --out.") from None
    print(f"report: {path}")
    return rows


def print_table(rows: Sequence[Row], remarks: Sequence[str] = (), width: int | None = None) -> None:
    """Print the table, remarks, and what it shows; a narrow terminal gets as many columns as fit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width, highlight=False)
    grid = Table(box=None, pad_edge=False)
    grid.add_column("activation", min_width=10, overflow="fold")
    labels = [f"{row.arm.label} ({row.arm.status})" if row.arm.status else row.arm.label for row in rows]
    every = [*columns(rows), *cost_columns(rows)]
    # A verdict is folded; other figures stay whole, and those that find no room are left out.
    texts = {c.title: [c.text(row).replace(" that ", "\nthat ") for row in rows] for c in every}
    need = {t: 2 + max(len(line) for text in (t, *found) for line in text.splitlines()) for t, found in texts.items()}
    room, shown = console.width - min(20, max(map(len, ("activation", *labels)))), set()
    for title in [c.title for c in sorted(every, key=lambda c: not c.main)]:
        if need[title] <= room:
            room -= need[title]
            shown.add(title)
    titles = [c.title for c in every if c.title in shown]
    for title in titles:
        grid.add_column(Text(title), justify="right", no_wrap=True)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        grid.add_row(Text(label, style="yellow" if row.arm.status else ""), *(texts[title][i] for title in titles))
    console.print(grid)
    for line in (*remarks, headline(rows), scope(rows)):
        console.print(Text(line), soft_wrap=True)


def _reproduce(paths: Sequence[Path], runs: Sequence[Run], plugin: Path | None) -> str:
    """The commands that train the same runs again: a folder holds the whole config of its study or run, and no code."""
    from model.activations import ACTIVATIONS  # late: it needs torch

    foreign = [] if plugin else sorted({run.activation for run in runs} - {*ACTIVATIONS})
    option = f" --plugin={quote(str(plugin or 'FILE'))}" if plugin or foreign else ""
    remark = [f"# FILE defines {joined(foreign)}: a plugin, which the folder does not hold"] if foreign else []
    configs = [config for path in paths for config in _configs(path, runs)]
    names = [config.resolve().parent.name for config in configs]
    again = [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    outs = [f"--out=runs/again-{name}" for name in again]
    commands = [f"python train.py {quote(str(c))} {quote(out)}{option}" for c, out in zip(configs, outs, strict=True)]
    return "\n".join([*commands, *remark])


def _configs(path: Path, runs: Iterable[Run]) -> list[Path]:
    """The config of a study or run, or those of the runs that a folder without one holds."""
    whole = [config for config in (path / "study.toml", path / "config.toml") if config.exists()]
    return whole[:1] or [path / r.folder.name / "config.toml" for r in runs if r.folder.parent == path.resolve()]
