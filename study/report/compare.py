"""Runs side by side: the table in the terminal, the report, and the figures of every run as a table."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from errors import UserError, unknown
from study.judge.effects import Row, best_first, compare_arms
from study.judge.repetitions import are_repetitions, compare_repetitions
from study.judge.results import Study, load_study
from study.plan.grid import shorten
from study.report.cells import Table
from study.report.drawing import styles
from study.report.page import Section, write_page
from study.report.sentences import headline, notes, scope, sentence
from study.report.spreadsheet import write_csv
from study.report.study_page import sections
from study.report.table import cost_columns, main_columns, page_table, repetitions_table

if TYPE_CHECKING:  # rich is imported late, as plotly is: a run of one seed prints no table
    import rich.console
    import rich.table

REPETITIONS_TEXT = (
    "The same study with other seeds, tuned anew: the difference to the reference in each, with its 95 % interval and "
    "verdict. The mean over repetitions has an interval from three on."
)
BESIDE = ("results.csv", "verdict.html")  # files that this project writes beside the report


def compare(paths: Sequence[Path], reference: str | None = None, out: Path | None = None) -> list[Row]:
    """Print the table of the runs, write their report with results.csv beside it, and return the table's rows.

    The report is written to `out`; by default to the study's folder, or for several paths to a folder beside the first
    that has the names of all. The reference is the study's own unless it is given.

    Raises:
        UserError: a path holds no run, no arm is the reference given, or the report cannot be written there.
    """
    if out and out.name in BESIDE:
        raise UserError(f"--out={out}: {out.name} is written beside the report. Choose another name for the report.")
    study = load_study(paths)
    rows = best_first(compare_arms(study, reference))
    if reference not in (None, rows[0].reference):  # no arm has it, so that another took its place
        raise UserError(unknown("reference", reference, dict.fromkeys(name for row in rows for name in row.arm.names)))
    print_table(rows, notes(rows, study))
    parts = sections(study, rows, _commands(paths, study))
    if are_repetitions(paths):
        table = repetitions_table(compare_repetitions(paths, reference), [path.resolve().name for path in paths])
        print("repetitions")
        _print(table)
        parts.insert(0, Section("repetitions", "Repetitions", "table", table, REPETITIONS_TEXT))
    path = out or _place(paths) / "report.html"
    title = " and ".join(path.resolve().name for path in paths)
    # The table is printed already when the disk turns out to be full or read-only.
    try:
        write_page(path, title, headline(rows), scope(rows), parts, styles([row.arm for row in rows]))
        write_csv(study, rows, path.with_name("results.csv"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}. Choose another --out.") from None
    print(f"report: {path}")
    return rows


def _place(paths: Sequence[Path]) -> Path:
    """Return the folder of a report on these paths."""
    if len(paths) == 1:
        return paths[0]
    return paths[0].resolve().parent / shorten("-and-".join(path.resolve().name for path in paths))


def print_table(rows: Sequence[Row], remarks: Sequence[str] = (), width: int | None = None) -> None:
    """Print the table and the finding."""
    table = page_table(rows, [*main_columns(rows), *cost_columns(rows)])
    if table:
        _print(table, width)
    for line in (*remarks, f"{sentence(headline(rows))} {sentence(scope(rows))}"):
        print(line)


def _print(table: Table, width: int | None = None) -> None:
    """Print a table; columns that the terminal has no room for follow in tables below."""
    from rich.console import Console

    console = Console(width=width, highlight=False)
    first = 0
    while first < len(table.titles):
        # One column at least is printed, however narrow the terminal is.
        last = first + 1
        while last < len(table.titles) and _fits(_columns(table, first, last + 1), console):
            last += 1
        console.print(_columns(table, first, last), end="\n\n")
        first = last


def _fits(table: "rich.table.Table", console: "rich.console.Console") -> bool:
    # By itself, rich would shorten figures to make a table fit.
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def _columns(table: Table, first: int, last: int) -> "rich.table.Table":
    """Return a part of the columns of a table, behind the names of its rows, as rich prints it."""
    from rich.table import Table as RichTable
    from rich.text import Text

    # `Text` is printed as it stands: a name may look like rich's markup.
    part = RichTable(box=None, pad_edge=False)
    part.add_column(Text(table.kind), min_width=10, max_width=30, overflow="fold")
    for title in table.titles[first:last]:
        part.add_column(Text(title), justify="right", no_wrap=True)
    for row in table.rows:
        name = Text(f"{row.name} ({row.status})", style="yellow") if row.status else Text(row.name)
        part.add_row(name, *(Text(cell.text) for cell in row.cells[first:last]))
    return part


def _commands(paths: Sequence[Path], study: Study) -> str:
    """Return the commands that train the same runs again, from the configs in their folders."""
    runs = study.runs
    configs = []
    for path in paths:
        # A study's folder holds runs with configs of their own, but its study.toml trains them all.
        config = next((path / name for name in ("study.toml", "config.toml") if (path / name).exists()), None)
        # A folder of runs that are no study has no config of its own.
        here = [path / run.folder.name / "config.toml" for run in runs if run.folder.parent == path.resolve()]
        configs += [config] if config else here
    plugins = dict.fromkeys(str(run.config["model"].get("plugin") or "") for run in runs)
    option = "".join(f" {quote(f'--plugin={plugin}')}" for plugin in plugins if plugin)
    commands = []
    for number, config in enumerate(configs, 1):
        out = f"runs/again-{number}-{config.resolve().parent.name}"
        commands.append(f"python train.py {quote(str(config))} {quote(f'--out={out}')}{option}")
    return "\n".join(commands)
