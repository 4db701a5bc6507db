"""The tables of a report: columns of figures, one row for each arm. The terminal and the page show them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from study.judge.arms import FOLDER
from study.judge.effects import EARLY, SHARES, VERDICTS, Reach, Row
from study.judge.repetitions import Repeated
from study.judge.statistics import MINIMUM_SEEDS, MOST_SEEDS, Effect

NEVER = 1e99  # a loss that is never reached sorts after every ratio


@dataclass(frozen=True)
class Strip:
    """A small picture of an interval against a margin; places are from 0 to 100, left to right, with zero at 50."""

    low: float
    mean: float
    high: float
    margin: tuple[float, float]
    claimed: tuple[float, float]
    outcome: str


@dataclass(frozen=True)
class Cell:
    """A place in a table: its text, and the number that the page sorts by, None where there is no figure.

    Where there is a picture, the page shows it, and the text is its description.
    """

    text: str
    value: float | None
    strong: bool = False
    picture: Strip | None = None


@dataclass(frozen=True)
class Column:
    """A column of figures."""

    title: str
    cell: Callable[[Row], Cell]


@dataclass(frozen=True)
class Table:
    """A table of the page: what its rows are, the titles of the other columns, and the rows."""

    kind: str
    titles: list[str]
    rows: list["TableRow"]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TableRow:
    """A row of the page's table. `arm` is the label whose key is drawn before the name; a claim's rows have none.

    `status` is shown beside the name, as `lowest loss` in a table of arms.
    """

    name: str
    cells: list[Cell]
    arm: str = ""
    status: str = ""


EMPTY = Cell("-", None)


def cell(value: float | None, form: str | Callable[[float], str]) -> Cell:
    """Return the cell of a number, written by a format or a function. There may be none, which is None or nan."""
    if value is None or math.isnan(value):
        return EMPTY
    if callable(form):
        return Cell(form(value), value)
    # 0 is exact here, mostly the reference against itself, and looks so.
    return Cell(format(value, form) if value else "0", value)


def main_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the main table: what decides first, then the losses."""
    several = any(row.arm.seeds > 1 for row in rows)
    return _filled(
        rows,
        Column("verdict", _verdict_cell),
        Column(f"vs {rows[0].reference}", lambda row: cell(row.final and row.final.mean, "+z.3f")),
        Column("95 % interval", _interval_cell),
        Column("tuned lr", _rate_cell),
        Column("seeds", lambda row: cell(row.arm.seeds if several else None, ".0f")),
        Column("seeds to decide", _needed_cell),
        _mean("val loss", "val/loss", ".3f"),
        Column("sd", lambda row: cell(row.arm.sd("val/loss"), ".3f")),
        _mean("perplexity", "val/loss", _perplexity),
        _mean("bits/byte", "val/bits_per_byte", ".3f"),
        _mean("test loss", "test/loss", ".3f"),
    )


def difference_columns(rows: Sequence[Row]) -> list[Column]:
    """Return how the difference comes about over training, and how sure it is."""
    reach = [Column(f"to {100 * share:g} %", lambda row, share=share: _reach_cell(row, share)) for share in SHARES]
    return _filled(
        rows,
        Column(f"at {100 * EARLY:g} %", lambda row: _effect_cell(row, row.early)),
        Column("change", lambda row: _effect_cell(row, row.change)),
        Column("on average", lambda row: _effect_cell(row, row.area)),
        *reach,
        Column("p (Holm)", lambda row: cell(row.p, p_value)),
        Column("can find", lambda row: cell(row.detectable, ".3f")),
        Column("text noise", lambda row: cell(row.noise, "±{:.3f}".format)),
    )


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Return what an arm costs, and how often its gradient was clipped."""
    return _filled(
        rows,
        _cost("parameters", "params/total", ",.0f"),
        _cost("in the FFN", "params/ffn", ",.0f"),
        _cost("MFLOP/token", "flops/token", lambda flops: f"{flops / 1e6:,.1f}"),
        _cost("tokens/s", "perf/tokens_per_s", ",.0f"),
        _cost("MFU", "perf/mfu", lambda share: f"{100 * share:.1f} %"),
        Column("clipped", lambda row: cell(row.arm.clipped, lambda share: f"{100 * share:.0f} %")),
    )


def page_table(
    rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str] = (), mark: bool = False
) -> Table | None:
    """Return these columns as a table of the page; None without columns and notes. `mark` marks the lowest loss."""
    if not columns and not notes:
        return None
    lowest = lowest_arm(rows) if mark else ""
    lines = []
    for row in rows:
        label = row.arm.label
        status = row.arm.status or ("lowest loss" if label == lowest else "")
        lines.append(TableRow(label, [column.cell(row) for column in columns], label, status))
    return Table("activation", [column.title for column in columns], lines, notes)


def lowest_arm(rows: Sequence[Row]) -> str:
    """Return the label of the arm with the lowest loss; nothing with too few seeds to tell, or for unlike studies."""
    if any(FOLDER in row.arm.parts for row in rows):
        return ""
    differences = {row.arm.label: row.final.mean for row in rows if row.final and row.final.n >= MINIMUM_SEEDS}
    return min(differences, key=differences.__getitem__) if len(differences) > 1 else ""


def repetitions_table(repeated: Sequence[Repeated], names: Sequence[str]) -> Table:
    """Return a row for each arm: its difference and verdict in each repetition, and their mean."""
    lines = []
    for arm in repeated:
        cells = [EMPTY if row.is_reference else _difference_cell(row) for row in arm.rows]
        mean = EMPTY
        if arm.mean:
            several = arm.mean.n >= 3  # the interval of two repetitions says next to nothing
            text = f"{arm.mean.mean:+.3f} {interval(arm.mean)}" if several else f"{arm.mean.mean:+.3f}"
            mean = Cell(text, arm.mean.mean)
        lines.append(TableRow(arm.label, [*cells, mean]))
    return Table("activation", [*names, "mean over repetitions"], lines)


def _difference_cell(row: Row) -> Cell:
    if row.final is None:
        return Cell(row.verdict or "-", None)
    shown = f" {interval(row.final)} {row.verdict}" if row.final.n > 1 else ""
    return Cell(f"{row.final.mean:+.3f}{shown}", row.final.mean)


def interval(effect: Effect) -> str:
    """Write an interval."""
    return f"[{effect.low:+.3f}, {effect.high:+.3f}]"


def margin(effect: Effect) -> str:
    """Write an effect with half its interval, if it has one."""
    half = (effect.high - effect.low) / 2
    return f"{effect.mean:+z.3f} ± {half:.3f}" if half > 0 else f"{effect.mean:+z.3f}"


def p_value(p: float) -> str:
    """Write a p value."""
    if p < 1e-4:
        return "<.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _filled(rows: Sequence[Row], *columns: Column) -> list[Column]:
    """Return the columns that have a figure in any row."""
    # So every column can be listed for every study: a study of one seed simply has no intervals.
    return [column for column in columns if any(column.cell(row).value is not None for row in rows)]


def _mean(title: str, metric: str, form: str | Callable[[float], str]) -> Column:
    return Column(title, lambda row: cell(row.arm.mean(metric), form))


def _cost(title: str, metric: str, form: str | Callable[[float], str]) -> Column:
    return Column(title, lambda row: cell(row.arm.cost(metric), form))


def _interval_cell(row: Row) -> Cell:
    """The interval of the final difference, sorted by its width; the reference has none."""
    width = row.final.high - row.final.low if row.final else math.nan
    return Cell(interval(row.final), width) if row.final and width > 0 else EMPTY


def _verdict_cell(row: Row) -> Cell:
    if not row.verdict or (row.final and row.final.n == 1):
        return EMPTY
    return Cell(row.verdict, VERDICTS.index(row.verdict), strong=row.verdict != "undecided")


def _needed_cell(row: Row) -> Cell:
    """How many seeds would probably decide an undecided difference."""
    if row.verdict != "undecided" or not row.final or row.final.n == 1:
        return EMPTY
    return Cell(seeds_text(row.seeds_needed), row.seeds_needed or NEVER)


def seeds_text(needed: int | None) -> str:
    """Write a number of seeds that would decide; None stands for more than any that is looked at."""
    return str(needed) if needed else f"over {MOST_SEEDS}"


def _effect_cell(row: Row, effect: Effect | None) -> Cell:
    if effect is None:
        return EMPTY
    return Cell("0" if row.is_reference else margin(effect), effect.mean)


def _rate_cell(row: Row) -> Cell:
    if not row.arm.tuning:
        return EMPTY
    edge = " (edge)" if row.arm.edge else ""
    return Cell(f"{row.arm.lr:.3g}{edge}", row.arm.lr)


def _reach_cell(row: Row, share: float) -> Cell:
    reach = row.reach.get(share)
    if reach is None:
        return EMPTY
    if reach.ratio is None:
        return Cell(_never(reach), NEVER)
    return Cell(f"×{reach.ratio:.2f}", reach.ratio)


def _never(reach: Reach) -> str:
    return "never" if reach.never == reach.n else f"never in {reach.never} of {reach.n}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 700 else "inf"  # exp(710) overflows
