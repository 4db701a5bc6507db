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
from study.report.page import Section, sections, write_report
from study.report.sentences import headline, notes, scope, sentence
from study.report.spreadsheet import write_csv
from study.report.table import Column, Table, cost_columns, main_columns, repetitions_table

if TYPE_CHECKING:
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
        _print_repetitions(table)
        parts.insert(0, Section("repetitions", "Repetitions", "table", table, REPETITIONS_TEXT))
    path = out or _place(paths) / "report.html"
    title = " and ".join(path.resolve().name for path in paths)
    # The table is printed already when the disk turns out to be full or read-only.
    try:
        write_report(parts, rows, path, title)
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
    """Print the finding and the table; columns that the terminal has no room for follow in tables below."""
    from rich.console import Console  # late, as plotly: a run of one seed prints no table
    from rich.text import Text

    console = Console(width=width, highlight=False)
    for columns in _fitting(rows, [*main_columns(rows), *cost_columns(rows)], console):
        console.print(_terminal_table(rows, columns), end="\n\n")
    for line in (*remarks, f"{sentence(headline(rows))} {sentence(scope(rows))}"):
        console.print(Text(line), soft_wrap=True)


def _fitting(rows: Sequence[Row], columns: Sequence[Column], console: "rich.console.Console") -> list[list[Column]]:
    """Split columns into tables, each as wide as the terminal allows."""
    # By itself, rich would shorten figures to make a table fit.
    unlimited = console.options.update(width=10_000)
    tables: list[list[Column]] = [[]]
    for column in columns:
        wider = _terminal_table(rows, [*tables[-1], column])
        if tables[-1] and console.measure(wider, options=unlimited).maximum > console.width:
            tables.append([])
        tables[-1].append(column)
    return tables


def _print_repetitions(repetitions: Table) -> None:
    from rich.console import Console
    from rich.table import Table as TerminalTable
    from rich.text import Text

    table = TerminalTable(box=None, pad_edge=False, title="repetitions", title_justify="left")
    for title in (repetitions.kind, *repetitions.titles):
        table.add_column(Text(title), overflow="fold")
    for row in repetitions.rows:
        table.add_row(Text(row.name), *(Text(cell.text) for cell in row.cells))
    Console(highlight=False).print(table)


def _terminal_table(rows: Sequence[Row], columns: Sequence[Column]) -> "rich.table.Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("activation", min_width=10, max_width=30, overflow="fold")
    for column in columns:
        table.add_column(Text(column.title), justify="right", no_wrap=True)
    for row in rows:
        # `Text` is printed as it stands: a name may look like rich's markup.
        label = f"{row.arm.label} ({row.arm.status})" if row.arm.status else row.arm.label
        texts = [column.cell(row).text for column in columns]
        table.add_row(Text(label, style="yellow" if row.arm.status else ""), *map(Text, texts))
    return table


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
