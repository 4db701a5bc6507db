"""What a table says, in sentences: the finding, how far it carries, and why figures are missing."""

from collections.abc import Sequence
from itertools import pairwise

from study.judge.arms import ACTIVATION, FOLDER, SEED, joined, short
from study.judge.effects import Row
from study.judge.results import Study, mismatch
from study.judge.statistics import MINIMUM_SEEDS, MOST_SEEDS
from study.plan.config import flatten
from training.config import WHERE

MOST_NAMES = 4  # arms that a headline names in one list


def headline(rows: Sequence[Row]) -> str:
    """Return the answer in one sentence; where there are too few seeds for one, what was measured."""
    if any(row.verdict and row.final and row.final.n >= MINIMUM_SEEDS for row in rows):
        return _answer(rows)
    # Without a verdict, the page names what is in the way of one, and otherwise what was measured.
    losses = {row.arm.label: row.arm.mean("val/loss") for row in rows}
    whole = [row for row in rows if losses[row.arm.label] is not None]
    if not whole:
        return "no arm is whole yet" if any(row.arm.finals("val/loss") for row in rows) else "no run has finished"
    if any(mismatch(row.arm.runs[0], whole[0].arm.runs[0]) for row in whole):
        return "the runs differ in data or token budget, so their losses do not compare"
    measured = [row for row in whole if row.final and not row.is_reference]
    if not measured:
        found = joined(f"{row.arm.label} {losses[row.arm.label]:.3f}" for row in whole[:MOST_NAMES])
        return f"validation loss, nats per token: {found}"
    seeds = min(row.arm.seeds for row in measured)
    given = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"{given} cannot tell: {_ends(subject(measured))}; a verdict needs {MINIMUM_SEEDS} seeds"


def subject(rows: Sequence[Row]) -> Row:
    """Return the row that a headline is about: that of the sigmoid, or else the one that is farthest off."""
    # The sigmoid is what this project asks about.
    decided = [row for row in rows if row.verdict in ("worse", "better")] or rows
    sigmoids = [row for row in rows if row.arm.activation == "sigmoid"]
    return max(sigmoids or decided, key=lambda row: abs(row.final.mean) if row.final else 0)


def _answer(rows: Sequence[Row]) -> str:
    """Return what the verdicts say: first of the arm that the headline is about, then of the others."""
    judged = [row for row in rows if row.verdict]
    first = subject([row for row in judged if row.final])
    reference, margin = first.reference, first.margin
    words = {
        "better": f"below {reference}",
        "worse": f"above {reference}",
        "equal": f"within {margin:g} of {reference}",
    }
    # The other arms follow in groups, the best verdict first: names alone, since the table below has their figures.
    clauses = [_verdict(first)]
    for verdict, place in words.items():
        names = _named([row for row in judged if row.verdict == verdict and row is not first])
        if names:
            clauses.append(f"{joined(names)} {'ends' if len(names) == 1 else 'end'} {place}")
    names = _named([row for row in judged if row.verdict == "undecided" and row is not first])
    if names:
        clauses.append(f"{joined(names)} {'is' if len(names) == 1 else 'are'} undecided")
    return "; ".join(clauses)


def _verdict(row: Row) -> str:
    """Return the verdict on one arm, with its size and interval or with what would decide it."""
    if row.verdict == "equal":
        return f"{row.arm.label} ends within {row.margin:g} nats of {row.reference} ({row.arm.seeds} seeds)"
    if row.verdict == "undecided":
        needed = f"{row.seeds_needed} could" if row.seeds_needed else f"nor could {MOST_SEEDS}"
        return f"{row.arm.seeds} seeds cannot tell {row.arm.label} from {row.reference}; {needed}"
    return _ends(row)


def _ends(row: Row) -> str:
    """Return where an arm ends: `sigmoid ends 0.32 nats above gelu (95 % interval 0.29 to 0.34, 5 seeds)`."""
    effect = row.final
    assert effect
    above = effect.mean >= 0
    # A small difference needs its third digit.
    digits = 2 if abs(effect.mean) >= 0.1 else 3
    ends = f"{row.arm.label} ends {abs(effect.mean):.{digits}f} nats {'above' if above else 'below'} {row.reference}"
    if effect.n == 1:
        return ends
    # "Above" and "below" hold the sign, so that the interval is written without one.
    low, high = (effect.low, effect.high) if above else (-effect.high, -effect.low)
    return f"{ends} (95 % interval {low:.{digits}f} to {high:.{digits}f}, {effect.n} seeds)"


def _named(rows: Sequence[Row]) -> list[str]:
    """Return the labels of arms, the farthest from the reference first; of many, the rest as a number."""
    labels = [row.arm.label for row in sorted(rows, key=lambda row: -abs(row.final.mean) if row.final else 0)]
    if len(labels) > MOST_NAMES:
        labels = [*labels[:MOST_NAMES], f"{len(labels) - MOST_NAMES} more"]
    return labels


def sentence(clause: str) -> str:
    """Return a clause with a capital, unless it begins with the name of a folder, and with a full stop."""
    first = clause.split(" ")[0]
    return f"{clause if '/' in first else clause[:1].upper() + clause[1:]}."


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
        parts.append(f"learning rate {rates[0]:g}")
    elif all(row.arm.tuning for row in rows):
        parts.append("each arm at its own learning rate")
    else:
        parts.append(f"learning rates {rates[0]:.3g} to {rates[-1]:.3g}")
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
    # Seeds that were added because of the results make an interval too narrow, so that the page says when it happened.
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
    # The table has a row for every arm that has a run. An arm without one would be missed by nobody.
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
        return f"one seed each{missing}"
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    within = ", each arm compared within its own study" if any(FOLDER in row.arm.parts for row in rows) else ""
    return f"{count}, paired{within}{missing}"
