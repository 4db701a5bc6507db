"""What the arms' rows say: columns of figures, remarks on what is missing, the verdict in a sentence and its scope."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from study.judge.arms import ACTIVATION, SEED, joined, short
from study.judge.effects import EARLY, NO_DIFFERENCE, SHARES, VERDICTS, Reach, Row
from study.judge.results import Study, mismatch
from study.judge.statistics import MINIMUM_SEEDS, Effect

NAMED = 4  # arms that the verdict sentence names of each kind
NEVER = 1e99  # sorts after every ratio


@dataclass(frozen=True)
class Column:
    """A column of figures: the value that it is sorted by, or None, and how the value or its row is written."""

    title: str
    value: Callable[[Row], float | None]
    form: str | Callable[[Row], str]
    main: bool = False  # has its place on the narrowest terminal

    def text(self, row: Row) -> str:
        """Write the row's value: a hyphen where there is none."""
        value = self.value(row)
        if value is None:
            return "-"
        return self.form(row) if callable(self.form) else format(value, self.form) if value else "0"


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the main table: losses, differences with intervals, verdicts."""
    against = f"vs {rows[0].reference}"
    return _filled(
        rows,
        Column("seeds", lambda row: row.arm.seeds if any(r.arm.seeds > 1 for r in rows) else None, ".0f"),
        replace(_mean("val loss", "val/loss", ".3f"), main=True),
        Column("sd", lambda row: row.arm.sd("val/loss"), ".4f"),
        Column(against, lambda row: row.final.mean if row.final else None, "+z.3f", True),
        Column("95 % interval", lambda row: _half(row.final), lambda row: interval(row.final), True),
        Column("text noise", lambda row: row.noise, lambda row: f"±{row.noise:.3f}"),
        Column("p (Holm)", lambda row: None if math.isnan(row.p) else row.p, lambda row: p_value(row.p)),
        Column("verdict", _rank, lambda row: row.verdict, True),
        _mean("perplexity", "val/loss", _perplexity),
        _mean("bits/byte", "val/bits_per_byte", ".3f"),
        _mean("test loss", "test/loss", ".3f"),
    )


def course_columns(rows: Sequence[Row]) -> list[Column]:
    """Return how the difference comes about over training."""

    def reach(share: float) -> Column:
        return Column(f"to {100 * share:g} %", lambda r: _sorted(r.reach.get(share)), lambda r: _reach(r.reach[share]))

    return _filled(
        rows,
        _effect(f"at {100 * EARLY:g} %", "early"),
        _effect("at the end", "final"),
        _effect("change", "change"),
        _effect("on average", "area"),
        *map(reach, SHARES),
    )


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Return what an arm costs, the learning rate that it takes, and how often its gradient was clipped."""
    shared = {row.shared_lr for row in rows if row.shared_lr}
    same = f"shared lr {min(shared):.3g}" if len(shared) == 1 else "shared lr"  # references have one each
    return _filled(
        rows,
        Column("tuned lr", lambda row: row.arm.lr if row.arm.tuning else None, _rate),
        _effect(same, "shared", lambda row: f" at {row.shared_lr:.3g}" * (len(shared) > 1)),
        _mean("parameters", "params/total", ",.0f"),
        _mean("in the FFN", "params/ffn", ",.0f"),
        _mean("MFLOP/token", "flops/token", lambda row: f"{(row.arm.mean('flops/token') or 0) / 1e6:,.1f}"),
        _mean("tokens/s", "perf/tokens_per_s", ",.0f"),
        Column("clipped", lambda row: row.arm.clipped, lambda row: f"{100 * (row.arm.clipped or 0):.0f} %"),
    )


def notes(rows: Sequence[Row], study: Study | None = None) -> list[str]:
    """Return why figures or verdicts are missing, one sentence a reason, naming the arms that it holds for."""
    why = {row.arm.label: row.note or ("" if row.verdict != "not shown" else row.reason) for row in rows}
    if all(row.arm.seeds == 1 for row in rows):  # the scope says that there is no verdict
        why = {row.arm.label: row.note for row in rows}
    reasons = [r for r in dict.fromkeys(why.values()) if r]
    said = [f"{joined(label for label, r in why.items() if r == reason)}: {reason}." for reason in reasons]
    absent = _absent(study) if study else []
    if study and study.named and not any(study.named in row.arm.names for row in rows):
        said.append(f"No arm is {study.named}, the study's reference: differences are to {rows[0].reference}.")
    return said + ([f"{joined(absent)}: no run has begun."] if absent else [])


def headline(rows: Sequence[Row]) -> str:
    """Return the verdicts in one clause; where there can be none, what was measured."""
    if any(row.verdict and row.final and row.final.n >= MINIMUM_SEEDS for row in rows):
        return _verdicts(rows)
    done = [row for row in rows if row.arm.mean("val/loss") is not None]
    if not done:
        return "no run has finished" if not any(row.arm.finals("val/loss") for row in rows) else "no arm is whole yet"
    if any(mismatch(row.arm.runs[0], done[0].arm.runs[0]) for row in done):
        return "the runs differ in data or token budget, so their losses do not compare"
    loss = {row.arm.label: row.arm.mean("val/loss") or 0 for row in done}
    best = min(loss, key=loss.__getitem__)
    if len(done) == 1:
        return f"validation loss of {best}: {loss[best]:.3f} nats/token"
    finding = f"lowest validation loss: {best} {loss[best]:.3f} nats/token"
    gaps = [(row, row.final.mean) for row in done if row.final and not row.is_reference]
    if not gaps:
        return finding
    # The question of the project is the sigmoid; without one, the arm that ends furthest above is told.
    told, gap = max(gaps, key=lambda pair: (pair[0].arm.activation == "sigmoid", pair[1]))
    return f"{finding}; {told.arm.label} is {abs(gap):.3f} {'above' if gap >= 0 else 'below'} {rows[0].reference}"


def scope(rows: Sequence[Row]) -> str:
    """Return how far the headline carries: the setting, seeds, tests."""
    return setting(rows) + "; " + _certainty(rows)


def setting(rows: Sequence[Row]) -> str:
    """Return where the rows were measured: size, tokens, corpus, optimiser, learning rate."""
    runs = [run for row in rows for run in row.arm.runs]
    sizes = sorted({size for run in runs if (size := run.final("params/total"))})
    budgets = joined(f"{budget:,}" for budget in sorted({run.budget for run in runs}))
    seen = {
        key: joined(dict.fromkeys(str(r.settings.get(key)) for r in runs)) for key in SCOPE if key in runs[0].settings
    }
    parts = [f"{sizes[0]:,.0f} parameters"] if sizes else []
    if len(sizes) > 1:
        parts = [f"{sizes[0]:,.0f} to {sizes[-1]:,.0f} parameters"]
    parts += [f"{budgets} training tokens of {' · '.join(v for k, v in seen.items() if k.startswith('data.'))}"]
    parts += [seen[key] for key in SCOPE if key in seen and not key.startswith("data.")]
    rates = sorted({row.arm.lr for row in rows})
    if len(rates) == 1:
        parts.append(f"learning rate {rates[0]}")
    elif all(row.arm.tuning for row in rows):
        parts.append("each arm at its own learning rate")
    else:
        parts.append(f"learning rates {rates[0]} to {rates[-1]}")
    return ", ".join(parts)


SCOPE = ("data.corpus", "data.tokenizer", "train.optimizer")


def interval(effect: Effect | None) -> str:
    """Write an interval."""
    return f"[{effect.low:+.3f}, {effect.high:+.3f}]" if effect else ""


def margin(effect: Effect) -> str:
    """Write an effect with half its interval, if it has one."""
    half = _half(effect)
    return f"{effect.mean:+z.3f}" + (f" ± {half:.3f}" if half is not None else "")


def _absent(study: Study) -> list[str]:
    """Return the labels of the arms that no run has begun of; of an activation without any, its name alone."""
    begun, missing = {run.activation for run in study.runs}, list(study.missing())
    labels = set()
    for folder, point in missing:
        here = [run.settings for run in study.runs if run.folder.parent == folder]
        told = {key: value for key, value in point.items() if key != SEED}
        if any(all(settings.get(key) == value for key, value in told.items()) for settings in here):
            continue  # other seeds have begun: the arm's own row says so
        name = str(told.pop(ACTIVATION, here[0][ACTIVATION]))
        asked = [*here, *(other for home, other in missing if home == folder)]
        fields = [key for key in told if len({repr(settings.get(key)) for settings in asked}) > 1]
        parts = [f"{part}={told[key]}" for part, key in zip(short(fields), fields, strict=True)]
        labels.add(" · ".join([name, *parts]) if name in begun else name)
    return sorted(labels)


def _certainty(rows: Sequence[Row]) -> str:
    seeds = sorted({row.arm.seeds for row in rows})
    broken = sum(bool(row.arm.trouble) for row in rows)
    missing = (
        f"; {broken} of {len(rows)} {'arms are not whole' if seeds[-1] > 1 else 'runs not finished'}" if broken else ""
    )
    if seeds == [1]:
        return "one seed each: no interval, no verdict" + missing
    count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    tests = sum(not math.isnan(row.p) for row in rows)
    few = f", and a verdict needs {MINIMUM_SEEDS}" if seeds[-1] < MINIMUM_SEEDS else ""
    holm = f"95 % t intervals, Holm over {tests} comparison{'s'[: tests != 1]}"
    return f"{count}, paired{few}; differences in nats per token, {holm}{missing}"


def _verdicts(rows: Sequence[Row]) -> str:
    reference = rows[0].reference
    lead = {"worse": f"worse than {reference}", "better": f"better than {reference}"}
    lead |= {NO_DIFFERENCE: f"no difference from {reference} that matters", "not shown": "not shown either way"}
    clauses = []
    for verdict, words in lead.items():
        found = [(row.arm.label, row.final) for row in rows if row.verdict == verdict and row.final]
        found.sort(key=lambda pair: -abs(pair[1].mean))
        names = [f"{label} ({margin(effect)})" if verdict in ("worse", "better") else label for label, effect in found]
        if len(names) > NAMED:
            names = [*names[:NAMED], f"{len(names) - NAMED} more"]
        clauses += [f"{words}: {joined(names)}"] if names else []
    return "; ".join(clauses)


def _filled(rows: Sequence[Row], *every: Column) -> list[Column]:
    return [column for column in every if any(column.value(row) is not None for row in rows)]


def _mean(title: str, metric: str, form: str | Callable[[Row], str]) -> Column:
    return Column(title, lambda row: row.arm.mean(metric), form)


def _effect(title: str, name: str, more: Callable[[Row], str] = lambda _: "") -> Column:
    def value(row: Row) -> float | None:
        effect = getattr(row, name)
        return effect.mean if effect else None

    return Column(title, value, lambda row: "0" if row.is_reference else margin(getattr(row, name)) + more(row))


def _half(effect: Effect | None) -> float | None:
    """Return half the width of an interval; None without one, or for the reference against itself."""
    half = (effect.high - effect.low) / 2 if effect else 0
    return half if half > 0 else None


def p_value(p: float) -> str:
    """Write a p value."""
    return "<.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _rank(row: Row) -> float | None:
    return VERDICTS.index(row.verdict) if row.verdict and row.final and row.final.n > 1 else None


def _perplexity(row: Row) -> str:
    loss = row.arm.mean("val/loss") or 0
    return f"{math.exp(loss):.2f}" if loss < 700 else "inf"


def _rate(row: Row) -> str:
    return f"{row.arm.lr:.3g}" + " (edge of grid)" * row.arm.edge


def _sorted(reach: Reach | None) -> float | None:
    return None if reach is None else NEVER if reach.ratio is None else reach.ratio


def _reach(reach: Reach) -> str:
    if reach.ratio is not None:
        return f"×{reach.ratio:.2f}"
    return "never" if reach.never == reach.n else f"never in {reach.never} of {reach.n}"
