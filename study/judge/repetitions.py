"""Repetitions of one study, with other seeds and tuned anew: the difference of each arm in each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.judge.effects import Row, compare_arms
from study.judge.results import load_study
from study.judge.statistics import Effect, paired
from study.plan.config import merge, trained_settings

OWN = ("train.seed", "study.tune_seeds", "study.engine", "study.reference")  # may differ between repetitions


@dataclass(frozen=True)
class Repeated:
    """An arm in every repetition, in order, and the mean of its differences over them.

    The mean is None where an arm has no difference in one of them. Its interval is over repetitions, of which three or
    more are needed for one that says much.
    """

    label: str
    rows: tuple[Row, ...]
    mean: Effect | None


def are_repetitions(paths: Sequence[Path]) -> bool:
    """Whether the paths are folders of two or more studies that differ in nothing but their seeds, and share none."""
    if len(paths) < 2 or not all((path / "study.toml").is_file() for path in paths):
        return False
    # A shared seed would give two repetitions the same luck, and their mean an interval that is too narrow.
    plans = [trained_settings(merge(path / "study.toml", {})) for path in paths]
    seeds: list[Any] = []
    for plan in plans:
        own = plan.get("train.seed", 0)
        seeds += own if isinstance(own, list) else [own]
        for key in OWN:
            plan.pop(key, None)
    return len(set(seeds)) == len(seeds) and all(plan == plans[0] for plan in plans)


def compare_repetitions(paths: Sequence[Path], reference: str | None = None) -> list[Repeated]:
    """Compare the arms of each repetition with its own reference arm, in the order of the first one's table."""
    tables = [{row.arm.label: row for row in compare_arms(load_study([path]), reference)} for path in paths]
    repeated = []
    for label in tables[0]:
        rows = tuple(table[label] for table in tables if label in table)
        # A mean over the repetitions that happen to have a difference would choose them by their result.
        finals = [row.final.mean for row in rows if row.final]
        whole = len(finals) == len(tables) and not rows[0].is_reference
        repeated.append(Repeated(label, rows, paired(finals) if whole else None))
    return repeated
