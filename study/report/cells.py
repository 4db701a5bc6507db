"""What tables are made of, and how figures in them are written. The terminal and the page show the same tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from study.judge.effects import Row
from study.judge.statistics import MOST_SEEDS, Effect

NEVER = 1e99  # what is never reached sorts after all that is


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
class TableRow:
    """A row of a table. `arm` is the label whose key is drawn before the name; a claim's rows have none.

    `status` is shown beside the name, as `lowest loss` in a table of arms.
    """

    name: str
    cells: list[Cell]
    arm: str = ""
    status: str = ""


@dataclass(frozen=True)
class Table:
    """A table: what its rows are, the titles of the other columns, the rows, notes below it, and how it is read."""

    kind: str
    titles: list[str]
    rows: list[TableRow]
    notes: Sequence[str] = ()
    reading: str = ""


# A figure that does not exist is no 0: it has a dash, and sorts after every figure.
EMPTY = Cell("-", None)


def cell(value: float | None, form: str | Callable[[float], str]) -> Cell:
    """Return the cell of a number, written by a format or a function. There may be none, which is None or nan."""
    if value is None or math.isnan(value):
        return EMPTY
    if callable(form):
        return Cell(form(value), value)
    # 0 is exact here, mostly the reference against itself, and looks so.
    return Cell(format(value, form) if value else "0", value)


def word_cell(word: str, order: Sequence[str]) -> Cell:
    """Return the cell of a verdict or an outcome, which sorts by its place in `order`. What is decided is bold."""
    return Cell(word, order.index(word), strong=word != "undecided")


def seeds_cell(needed: int | None) -> Cell:
    """Return the cell of how many seeds would decide; None stands for more than any number that is looked at."""
    return Cell(str(needed), needed) if needed else Cell(f"over {MOST_SEEDS}", NEVER)


def interval(effect: Effect) -> str:
    """Write an interval."""
    return f"[{effect.low:+.3f}, {effect.high:+.3f}]"


def effect_text(effect: Effect, unit: str = "") -> str:
    """Write an effect with its unit, and with its interval if it has one."""
    parts = [f"{effect.mean:+.3f}", unit, interval(effect) if effect.n > 1 else ""]
    return " ".join(filter(None, parts))
