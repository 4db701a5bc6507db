"""Runs, finished or not, read back from their folders and laid side by side without comparing what does not compare."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from errors import UserError
from training.config import WHERE

KNOWN = ("sigmoid", "relu", "gelu", "silu", "swiglu")  # the five that everyone knows come first everywhere
RUN_FOLDER = "a run folder holds config.toml and metrics.jsonl, a study folder holds one such folder per run"


@dataclass(frozen=True)
class Run:
    """One run folder: its resolved config, the records of `metrics.jsonl`, and `summary.json` once it has finished."""

    name: str
    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def activation(self) -> str:
        """The name in the registry."""
        return str(self.config["model"]["activation"])

    @property
    def budget(self) -> int:
        """Training tokens asked for; an unfinished run has seen fewer."""
        return int(self.config["train"]["tokens"])

    @property
    def status(self) -> str:
        """`finished`, `unfinished`, `diverged` (the final loss is no number), or what the summary calls it."""
        if self.summary is None:
            return "unfinished"
        status = str(self.summary.get("status", "finished"))
        return "diverged" if status == "finished" and _number(self.summary, "val/loss") is None else status

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as `section.field`: what is trained, the activation apart."""
        sections = ((s, part) for s, part in self.config.items() if isinstance(part, dict) and s != "wandb")
        flat = {f"{section}.{field}": value for section, part in sections for field, value in part.items()}
        return {key: value for key, value in flat.items() if key not in {*WHERE, "model.activation"}}

    def final(self, metric: str) -> float | None:
        """Return a figure of a finished run's summary, or None: a partial figure is never passed off as a final one."""
        return _number(self.summary or {}, metric) if self.status == "finished" else None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (tokens, value) for every record that holds a finite value of the metric."""
        points = ((record["tokens"], _number(record, metric)) for record in self.records)
        return [(tokens, value) for tokens, value in points if value is not None]


def load_run(folder: str | Path) -> Run:
    """Read one run folder. Raises `UserError` when it is none, or when one of its files is damaged."""
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder} is not a run folder: {RUN_FOLDER}.")
    try:
        config = tomllib.loads((folder / "config.toml").read_text("utf-8"))
        summary = folder / "summary.json"
        final = json.loads(summary.read_bytes()) if summary.exists() else None
        records = _records(folder / "metrics.jsonl")
    except ValueError as error:
        raise UserError(f"a file of the run {folder} is damaged: {error}") from error
    if "activation" not in config.get("model", {}) or "tokens" not in config.get("train", {}):
        raise UserError(
            f"{folder / 'config.toml'} does not configure a run: it lacks model.activation or train.tokens."
        )
    return Run(folder.resolve().name, folder, config, records, final)


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read every run that the paths name; each is a run folder, or a study folder that holds run folders."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: {RUN_FOLDER}.")
        configs = [path / "config.toml"] if (path / "config.toml").is_file() else path.glob("*/config.toml")
        found = sorted((config.parent.resolve() for config in configs), key=_natural)
        if not found:
            raise UserError(f"{path} holds no run: {RUN_FOLDER}.")
        folders |= dict.fromkeys(found)
    return [load_run(folder) for folder in folders]


def ordered(runs: Sequence[Run]) -> list[Run]:
    """Return the runs by activation: the five of `KNOWN` first, then the rest in order of appearance."""
    rank = {name: i for i, name in enumerate(dict.fromkeys([*KNOWN, *(run.activation for run in runs)]))}
    return sorted(runs, key=lambda run: rank[run.activation])


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the settings, the activation apart, in which the runs differ."""
    flats = [run.settings for run in runs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]


def present(runs: Sequence[Run], reference: str) -> str:
    """Return the reference activation if a run has it, else the first run's."""
    names = [run.activation for run in ordered(runs)]
    return reference if reference in names else names[0]


def partner(run: Run, runs: Sequence[Run], reference: str) -> tuple[Run | None, str]:
    """Return the reference activation's run with the same other settings, or None and why none compares."""
    if run.activation == reference:
        return run, ""
    # Data and budget are held against a candidate afterwards, so that the reason can name them.
    fields = [key for key in varying(runs) if key != "train.tokens" and not key.startswith("data.")]
    mine = [run.settings.get(key) for key in fields]
    same = [r for r in runs if r.activation == reference and [r.settings.get(key) for key in fields] == mine]
    if not same:
        return None, f"no {reference} run with the same {_and(_short(fields))}"
    reasons = {_mismatch(run, other): other for other in reversed(same)}
    return (reasons[""], "") if "" in reasons else (None, _mismatch(run, same[0]))


@dataclass(frozen=True)
class Row:
    """A run's line in the table; `difference` (nats per token, to the reference) may be None, and `note` says why."""

    run: Run
    label: str
    arm: str  # the label without the seed: what a mean over seeds is taken over
    reference: str
    difference: float | None
    note: str


def table(runs: Sequence[Run], reference: str = "gelu") -> list[Row]:
    """Lay the runs side by side, each validation loss also relative to the reference activation's.

    The reference run is the one whose other settings are the same (the seed, say). If no run has the reference
    activation, the first run's activation takes its place.
    """
    runs, reference, fields = ordered(runs), present(runs, reference), varying(runs)
    rows = []
    for run, label in zip(runs, _labels(runs, fields), strict=True):
        other, note = partner(run, runs, reference)
        ours, theirs = run.final("val/loss"), other.final("val/loss") if other else None
        if run.status != "finished":
            note = _progress(run)
        elif other and theirs is None:
            note = f"the {reference} run to compare with is {other.status}"
        difference = None if ours is None or theirs is None else ours - theirs
        arm = _describe(run, [key for key in fields if key != "train.seed"])
        rows.append(Row(run, label, arm, reference, difference, note))
    return rows


def notes(rows: Sequence[Row]) -> list[str]:
    """Return why figures are missing, one sentence a reason, naming the runs that it holds for."""
    reasons = dict.fromkeys(row.note for row in rows if row.note)
    return [f"{_and(row.label for row in rows if row.note == reason)}: {reason}." for reason in reasons]


def headline(rows: Sequence[Row]) -> tuple[str, str]:
    """Return what the table shows in one clause, and how far that carries (seeds, intervals) in another."""
    done = [row for row in rows if row.run.status == "finished"]
    missing = f"; {len(rows) - len(done)} of {len(rows)} runs not finished" if len(done) < len(rows) else ""
    if not done:
        return "no run has finished", "nothing to compare yet"
    if any(_mismatch(row.run, done[0].run) for row in done):
        return "the runs differ in data or token budget", "losses do not compare across these" + missing
    arms: dict[str, list[Row]] = {}
    for row in done:
        arms.setdefault(row.arm, []).append(row)
    loss = {arm: fmean(row.run.final("val/loss") or 0 for row in group) for arm, group in arms.items()}
    best = min(loss, key=loss.__getitem__)
    if len(arms) == 1:
        return f"validation loss of {best}: {loss[best]:.3f} nats/token", "nothing to compare it with" + missing
    finding = f"lowest validation loss: {best} {loss[best]:.3f} nats/token"
    gaps = {row.arm: [r.difference for r in arms[row.arm] if r.difference is not None] for row in done}
    gap = {a: fmean(g) for a, g in gaps.items() if g and arms[a][0].run.activation != rows[0].reference}
    if gap:
        # The question of the project is the sigmoid; without one, the arm that ends furthest from the best is told.
        sigmoids = [arm for arm in gap if arms[arm][0].run.activation == "sigmoid"]
        told = min(sigmoids, key=loss.__getitem__) if sigmoids else max(gap, key=gap.__getitem__)
        finding += f"; {told} is {abs(gap[told]):.3f} {'above' if gap[told] >= 0 else 'below'} {rows[0].reference}"
    seeds = sorted({len({row.run.settings.get("train.seed") for row in group}) for group in arms.values()})
    if seeds == [1]:
        return finding, "one seed each: no interval, no verdict" + missing
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return finding, f"means over {count}, differences paired by seed: no interval, no verdict" + missing


@dataclass(frozen=True)
class Column:
    """A column of figures: how to read its value from a row, how to write it, and whether it needs a wide terminal."""

    title: str
    value: Callable[[Row], float | None]
    form: str
    wide: bool = False

    def text(self, row: Row) -> str:
        """Write the row's value: a hyphen where there is none."""
        value = self.value(row)
        return "-" if value is None else format(value, self.form) if value else "0"


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the table's columns of figures; test figures only where some run has them."""

    def final(title: str, metric: str, form: str, wide: bool = False) -> Column:
        return Column(title, lambda row: row.run.final(metric), form, wide)

    every = [
        final("val loss", "val/loss", ".3f"),
        Column(f"vs {rows[0].reference}", lambda row: row.difference, "+z.3f"),
        final("perplexity", "val/perplexity", ".2f"),
        final("bits/byte", "val/bits_per_byte", ".3f"),
        final("test loss", "test/loss", ".3f", wide=True),
        final("parameters", "params/total", ",.0f"),
        final("tokens/s", "perf/tokens_per_s", ",.0f", wide=True),
    ]
    return [c for c in every if c.title != "test loss" or any(c.value(row) is not None for row in rows)]


def print_table(rows: Sequence[Row], remarks: Sequence[str] = (), width: int | None = None) -> None:
    """Print the table, its notes, the caller's remarks and a one-line summary; a narrow terminal gets fewer columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width, highlight=False)
    shown = [column for column in columns(rows) if console.width >= 100 or not column.wide]
    grid = Table(box=None, pad_edge=False)
    grid.add_column("activation", overflow="fold")
    for column in shown:
        grid.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        done = row.run.status == "finished"
        label = Text(row.label) if done else Text(f"{row.label} ({row.run.status})", style="yellow")
        grid.add_row(label, *(column.text(row) for column in shown))
    console.print(grid)
    for line in (*notes(rows), *remarks, "; ".join(headline(rows))):
        console.print(Text(line), soft_wrap=True)


def _records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line cut short by a killed process is no record."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path.name}, line {number}: {error}") from error
    return records


def _number(record: dict[str, Any], metric: str) -> float | None:
    value = record.get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _mismatch(run: Run, other: Run) -> str:
    """Return why the losses of two runs do not compare, or nothing."""
    data = [(r.summary or {}).get("data/fingerprint") for r in (run, other)]
    # An unfinished run has no fingerprint yet: its data section stands in for it.
    if data[0] != data[1] if None not in data else run.config.get("data") != other.config.get("data"):
        return f"trained on other data than {other.activation}, so the losses do not compare"
    if run.budget != other.budget:
        return (
            f"trained on {run.budget:,} tokens and {other.activation} on {other.budget:,}, so the losses do not compare"
        )
    return ""


def _progress(run: Run) -> str:
    seen = run.records[-1]["tokens"] if run.records else 0
    losses = run.curve("val/loss")
    last = f", last validation loss {losses[-1][1]:.3f}" if losses else ""
    return f"{run.status} at {seen:,} of {run.budget:,} tokens{last}"


def _describe(run: Run, fields: Sequence[str]) -> str:
    values = (run.settings.get(key) for key in fields)
    return " · ".join(
        [run.activation, *(f"{name}={value}" for name, value in zip(_short(fields), values, strict=True))]
    )


def _labels(runs: Sequence[Run], fields: Sequence[str]) -> list[str]:
    """Name each run by its activation and what varies; runs that only their folders tell apart add the folder."""
    plain = [_describe(run, fields) for run in runs]
    folders = (f"{run.folder.resolve().parent.name}/{run.name}" for run in runs)
    return [f"{n} ({folder})" if plain.count(n) > 1 else n for n, folder in zip(plain, folders, strict=True)]


def _short(fields: Sequence[str]) -> list[str]:
    """Drop the section of each field wherever the rest is still unique."""
    last = [key.rsplit(".", 1)[-1] for key in fields]
    return [name if last.count(name) == 1 else key for key, name in zip(fields, last, strict=True)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which seed-2 comes before seed-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
