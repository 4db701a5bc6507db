"""The tables of docs/findings.md and docs/claims/ from docs/results/*.csv, with nothing but pandas, numpy and scipy.

python docs/tables.py

The statistics are written out once more here, so that study/judge/statistics.py is checked by a second pair of hands.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(__file__).parent / "results"
REPETITIONS = sorted(RESULTS.glob("activations-small-*.csv"))


def losses(path: Path, split: str = "val") -> dict[str, pd.DataFrame]:
    """Return the final losses of each activation on a split: a row for each seed, a column for each learning rate.

    Of more than three rates, the lowest mean validation loss and its two neighbours are kept.
    """
    runs = pd.read_csv(path)
    tables = {}
    for name, arm in runs[runs["stage"] == "final"].groupby("model.activation", sort=False):
        table = arm.pivot_table(index="train.seed", columns="train.lr", values=["val/loss", "test/loss"])
        lowest = int(table["val/loss"].mean().argmin())
        tables[str(name)] = table[f"{split}/loss"].iloc[:, lowest - 1 : lowest + 2]
    return tables


def best(table: pd.DataFrame) -> tuple[float, float]:
    """Return the learning rate at which the parabola through the three means is lowest, and the loss there."""
    x, y = np.log(table.columns.to_numpy(float)), table.mean().to_numpy()
    parabola = np.polynomial.Polynomial.fit(x, y, 2)
    lowest = float(parabola.deriv().roots()[0].real)
    lowest = min(max(lowest, x[0]), x[2])
    return float(np.exp(lowest)), float(parabola(lowest))


def pseudo_values(table: pd.DataFrame) -> np.ndarray:
    """Return the jackknife's pseudo-value of each seed for the loss at the best learning rate."""
    n = len(table)
    without = np.array([best(table.drop(index=seed))[1] for seed in table.index])
    return n * best(table)[1] - (n - 1) * without


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of some values, and the ends of its 95 % t interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(values.mean()), float(low), float(high)


def signed(number: float) -> str:
    """Return a number with three decimals and its sign, as the docs write it."""
    return f"{number:+.3f}".replace("-", "−")


def effect(low_high: tuple[float, float, float]) -> str:
    """Return a difference with its interval."""
    mean, low, high = map(signed, low_high)
    return f"{mean} [{low}, {high}]"


def differences(path: Path, reference: str = "gelu", split: str = "val") -> dict[str, tuple[float, float, float]]:
    """Return each activation's difference to the reference, paired by seed, with its interval; the lowest first."""
    tables = losses(path, split)
    against = pseudo_values(tables.pop(reference))
    found = {name: interval(pseudo_values(table) - against) for name, table in tables.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def study_table(path: Path, reference: str = "gelu") -> list[str]:
    """Return the rows of one study: activation, seeds, loss, difference, the same on the test split, learning rate."""
    tables, effects, tests = losses(path), differences(path, reference), differences(path, reference, "test")
    effects[reference] = (0.0, 0.0, 0.0)
    rows = []
    for name in sorted(effects, key=lambda name: effects[name]):
        values = pseudo_values(tables[name])
        difference = "0 | 0" if name == reference else f"{effect(effects[name])} | {effect(tests[name])}"
        rate = f"{best(tables[name])[0]:.1e}".replace("e-0", "e-")
        loss = f"{values.mean():.3f} ({values.std(ddof=1):.3f})"
        rows.append(f"| {name} | {len(values)} | {loss} | {difference} | {rate} |")
    return rows


def repetition_table(paths: Sequence[Path]) -> list[str]:
    """Return the rows of several repetitions of one study: each activation's difference in each of them."""
    effects = [differences(path) for path in paths]
    return [f"| {name} | {' | '.join(effect(each[name]) for each in effects)} |" for name in effects[0]]


def main() -> None:
    """Print every table, each under the name of its file."""
    for path in sorted(RESULTS.glob("*.csv")):
        print(path.name, *study_table(path), sep="\n", end="\n\n")
    print("repetitions", *repetition_table(REPETITIONS), sep="\n")


if __name__ == "__main__":
    main()
