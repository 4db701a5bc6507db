"""What a table says, in sentences: the finding, how far it carries, and why figures are missing."""

import math
from collections.abc import Sequence
from itertools import pairwise

from study.judge.arms import ACTIVATION, SEED, joined, short
from study.judge.effects import Row
from study.judge.results import Study, mismatch
from study.judge.statistics import MINIMUM_SEEDS
from study.plan.config import flatten
from study.report.table import margin
from training.config import WHERE

MOST_NAMES = 4  # arms that the headline names of each verdict


def headline(rows: Sequence[Row]) -> str:
    """Return the verdicts in one clause; where there can be none, what was measured."""
    if any(row.verdict and row.final and row.final.n >= MINIMUM_SEEDS for row in rows):
        return _verdicts(rows)
    losses = {row.arm.label: row.arm.mean("val/loss") for row in rows}
    losses = {label: loss for label, loss in losses.items() if loss is not None}
    whole = [row for row in rows if row.arm.label in losses]
    if not whole:
        return "no arm is whole yet" if any(row.arm.finals("val/loss") for row in rows) else "no run has finished"
    if any(mismatch(row.arm.runs[0], whole[0].arm.runs[0]) for row in whole):
        return "the runs differ in data or token budget, so their losses do not compare"
    best = min(losses, key=losses.__getitem__)
    if len(whole) == 1:
        return f"validation loss of {best}: {losses[best]:.3f} nats/token"
    finding = f"lowest validation loss: {best} {losses[best]:.3f} nats/token"
    gaps = [(row.arm, row.final.mean) for row in whole if row.final and not row.is_reference]
    if not gaps:
        return finding
    # The question of the project is the sigmoid. Without one, the headline names the arm that ends highest.
    arm, gap = max(gaps, key=lambda pair: (pair[0].activation == "sigmoid", pair[1]))
    return f"{finding}; {arm.label} is {abs(gap):.3f} {'above' if gap >= 0 else 'below'} {rows[0].reference}"


def scope(rows: Sequence[Row]) -> str:
    """Return how far the headline carries: the setting, seeds, tests."""
    return f"{setting(rows)}; {_certainty(rows)}"


def setting(rows: Sequence[Row]) -> str:
    """Return where the rows were measured: size, tokens, corpus, optimiser, learning rate."""
    runs = [run for row in rows for run in row.arm.runs]

    def values(key: str) -> str:
        return joined(dict.fromkeys(str(run.settings.get(key)) for run in runs)) if key in runs[0].settings else ""

    sizes = sorted({size for run in runs if (size := run.final("params/total"))})
    parts = []
    if sizes:
        largest = f" to {sizes[-1]:,.0f}" if len(sizes) > 1 else ""
        parts.append(f"{sizes[0]:,.0f}{largest} parameters")
    # Where runs differ, all values are named: the reader has to know that they do.
    budgets = joined(f"{budget:,}" for budget in sorted({run.budget for run in runs}))
    data = " · ".join(filter(None, (values("data.corpus"), values("data.tokenizer"))))
    parts.append(f"{budgets} training tokens of {data}")
    if values("train.optimizer"):
        parts.append(values("train.optimizer"))
    rates = sorted({row.arm.lr for row in rows})
    if len(rates) == 1:
        parts.append(f"learning rate {rates[0]}")
    elif all(row.arm.tuning for row in rows):
        parts.append("each arm at its own learning rate")
    else:
        parts.append(f"learning rates {rates[0]} to {rates[-1]}")
    return ", ".join(parts)


def notes(rows: Sequence[Row], study: Study | None = None) -> list[str]:
    """Return why figures or verdicts are missing, a sentence for each reason with the arms that it holds for."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            labels.setdefault(row.note, []).append(row.arm.label)
    sentences = [f"{joined(names)}: {reason}." for reason, names in labels.items()]
    if study and study.named and not any(study.named in row.arm.names for row in rows):
        sentences.append(f"No arm is {study.named}, the study's reference: differences are to {rows[0].reference}.")
    sentences += _growth(study) if study else []
    absent = _absent(study) if study else []
    if absent:
        sentences.append(f"{joined(absent)}: no run has begun.")
    return sentences


def _growth(study: Study) -> list[str]:
    """Return what each study was given after its results had been seen, a sentence for each time."""
    sentences = []
    for folder, plans in study.earlier.items():
        for old, new in pairwise([*map(flatten, plans), flatten(study.plans[folder])]):
            changes = [
                f"{key} from {old.get(key)} to {new.get(key)}"
                for key in {**old, **new}
                if old.get(key) != new.get(key) and key not in WHERE
            ]
            sentences.append(f"Grown after a look at the results: {'; '.join(changes)}.")
    return sentences


def _absent(study: Study) -> list[str]:
    """Return the labels of the planned arms that have no run yet, by all settings in which planned runs differ."""
    labels = set()
    for folder, settings in study.missing():
        arm = {key: value for key, value in settings.items() if key != SEED}
        if any(run.folder.parent == folder and run.agrees(arm) for run in study.runs):
            continue  # other seeds have begun, and the row of the arm names the missing one
        fields = [key for key in arm if key != ACTIVATION]
        parts = [f"{name}={arm[field]}" for name, field in zip(short(fields), fields, strict=True)]
        labels.add(" · ".join([str(arm[ACTIVATION]), *parts]))
    return sorted(labels)


def _certainty(rows: Sequence[Row]) -> str:
    seeds = sorted({row.arm.seeds for row in rows})
    broken = sum(bool(row.arm.trouble) for row in rows)
    missing = ""
    if broken:
        missing = f"; {broken} of {len(rows)} {'arms are not whole' if seeds[-1] > 1 else 'runs not finished'}"
    if seeds == [1]:
        return f"one seed each: no interval, no verdict{missing}"
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    few = f", and a verdict needs {MINIMUM_SEEDS}" if seeds[-1] < MINIMUM_SEEDS else ""
    tests = sum(not math.isnan(row.p) for row in rows)
    comparisons = "1 comparison" if tests == 1 else f"{tests} comparisons"
    return f"{count}, paired{few}; differences in nats per token, 95 % t intervals, Holm over {comparisons}{missing}"


def _verdicts(rows: Sequence[Row]) -> str:
    reference = rows[0].reference
    words = {
        "worse": f"worse than {reference}",
        "better": f"better than {reference}",
        "equal": f"equal to {reference} within {rows[0].margin:g}",
        "undecided": "undecided",
    }
    clauses = []
    for verdict, text in words.items():
        effects = [(row.arm.label, row.final) for row in rows if row.verdict == verdict and row.final]
        effects.sort(key=lambda pair: -abs(pair[1].mean))
        # Where nothing was shown, a size would look like a result.
        sized = verdict in ("worse", "better")
        names = [f"{label} ({margin(effect)})" if sized else label for label, effect in effects]
        if len(names) > MOST_NAMES:
            names = [*names[:MOST_NAMES], f"{len(names) - MOST_NAMES} more"]
        if names:
            clauses.append(f"{text}: {joined(names)}")
    return "; ".join(clauses)
