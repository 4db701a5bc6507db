"""The tables of arms: a row for each arm, and columns of figures with what they mean.

A new column is one line in a list below, and one in `MEANINGS` if its title does not explain itself.
"""

import math
from collections.abc import Sequence

from study.judge.arms import FOLDER
from study.judge.effects import EARLY, SHARES, VERDICTS, Row
from study.judge.repetitions import Repeated
from study.judge.statistics import MINIMUM_SEEDS, Effect
from study.report.cells import (
    EMPTY,
    NEVER,
    Cell,
    Column,
    Table,
    TableRow,
    cell,
    effect_text,
    interval,
    seeds_cell,
    word_cell,
)

# What a column means where its title does not say it.
MEANINGS = {
    "verdict": "Worse and better: the interval excludes 0, after Holm’s adjustment for {tests} comparisons, and the "
    "difference is at least the margin of {margin:g}. Equal: the whole interval lies within the margin.",
    "tuned lr": "“(edge)”: the best rate is the lowest or highest that was tried. A better one may lie beyond.",
    "seeds to decide": "“Seeds to decide” is a plan: so many would probably decide, at this mean and spread.",
    "at 25 %": "“At 25 %”: at a quarter of the budget. ±: half the 95 % interval.",
    "change": "“Change”: from there to the end; below zero, the arm gains on {reference}.",
    "to 50 %": "“To 50 %”: tokens to {reference}’s loss at half its budget, as a multiple of {reference}’s own.",
    "p (Holm)": "“p (Holm)” is for a difference of 0.",
    "can find": "“Can find” is the smallest difference that so many seeds find with a probability of 80 %.",
    "text noise": "“Text noise” is half the 95 % interval of the difference over other validation text, with the same "
    "trained networks (block bootstrap). It does not cover other seeds, and no verdict uses it.",
    "tokens/s": "The runs of a study share a machine, so that tokens/s is not what a run alone would reach.",
    "MFU": "“MFU”, model FLOPs utilisation, is the share of the GPUs’ peak in bf16 that a run uses. Runs that train as "
    "one stack share a GPU: their shares add up.",
    "clipped": "“Clipped” is the share of recorded steps whose gradient was larger than the limit.",
}
BRACKETED = (
    "Each seed trained at {rates} learning rates. An arm’s loss is the lowest point of the parabola through their "
    "means. The interval is a jackknife over seeds, so that it covers the choice of the rate. Curves and samples are "
    "of the middle rate."
)
UNBRACKETED = "The intervals leave out the luck of the learning rate: no arm trained at several rates."


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
        Column("val loss", lambda row: cell(row.arm.mean("val/loss"), ".3f")),
        Column("sd", lambda row: cell(row.arm.sd("val/loss"), ".3f")),
        Column("perplexity", lambda row: cell(row.arm.mean("val/loss"), _perplexity)),
        Column("bits/byte", lambda row: cell(row.arm.mean("val/bits_per_byte"), ".3f")),
        Column("test loss", lambda row: cell(row.arm.mean("test/loss"), ".3f")),
    )


def difference_columns(rows: Sequence[Row]) -> list[Column]:
    """Return how the difference comes about over training, and how sure it is."""
    return _filled(
        rows,
        Column(f"at {100 * EARLY:g} %", lambda row: _effect_cell(row, row.early)),
        Column("change", lambda row: _effect_cell(row, row.change)),
        Column("on average", lambda row: _effect_cell(row, row.area)),
        *(Column(f"to {100 * share:g} %", lambda row, share=share: _reach_cell(row, share)) for share in SHARES),
        Column("p (Holm)", lambda row: cell(row.p, _p_value)),
        Column("can find", lambda row: cell(row.detectable, ".3f")),
        Column("text noise", lambda row: cell(row.noise, "±{:.3f}".format)),
    )


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Return what an arm costs, and how often its gradient was clipped."""
    return _filled(
        rows,
        Column("parameters", lambda row: cell(row.arm.cost("params/total"), ",.0f")),
        Column("in the FFN", lambda row: cell(row.arm.cost("params/ffn"), ",.0f")),
        Column("MFLOP/token", lambda row: cell(row.arm.cost("flops/token"), lambda flops: f"{flops / 1e6:,.1f}")),
        Column("tokens/s", lambda row: cell(row.arm.cost("perf/tokens_per_s"), ",.0f")),
        Column("MFU", lambda row: cell(row.arm.cost("perf/mfu"), lambda share: f"{100 * share:.1f} %")),
        Column("clipped", lambda row: cell(row.arm.clipped, lambda share: f"{100 * share:.0f} %")),
    )


def page_table(
    rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str] = (), mark: bool = False
) -> Table | None:
    """Return these columns as a table; None without columns and notes. `mark` marks the lowest loss."""
    if not columns and not notes:
        return None
    # One table of a page marks the lowest loss. In the others, the mark would only be in the way.
    lowest = lowest_arm(rows) if mark else ""
    lines = []
    for row in rows:
        label = row.arm.label
        status = row.arm.status or ("lowest loss" if label == lowest else "")
        lines.append(TableRow(label, [column.cell(row) for column in columns], label, status))
    titles = [column.title for column in columns]
    return Table("activation", titles, lines, notes, _meanings(rows, titles))


def _meanings(rows: Sequence[Row], titles: Sequence[str]) -> str:
    """Return what the columns mean that a table has."""
    rates = [len(row.arm.losses_by_rate()) for row in rows if row.arm.bracket]
    # Only columns that are there are explained, and of the intervals what they cover in this study.
    meanings = MEANINGS | {"95 % interval": BRACKETED if rates else UNBRACKETED}
    facts = {"reference": rows[0].reference, "margin": rows[0].margin, "rates": rates[0] if rates else 0}
    facts["tests"] = sum(not math.isnan(row.p) for row in rows)
    return " ".join(meanings[title].format(**facts) for title in titles if title in meanings)


def lowest_arm(rows: Sequence[Row]) -> str:
    """Return the label of the arm with the lowest loss; nothing with too few seeds to tell, or for unlike studies."""
    if any(FOLDER in row.arm.parts for row in rows):
        return ""
    # Differences rather than losses: an arm without a partner has a loss, and is compared with nothing.
    differences = {row.arm.label: row.final.mean for row in rows if row.final and row.final.n >= MINIMUM_SEEDS}
    return min(differences, key=differences.__getitem__) if len(differences) > 1 else ""


def repetitions_table(repeated: Sequence[Repeated], names: Sequence[str]) -> Table:
    """Return a row for each arm: its difference and verdict in each repetition, and their mean."""
    lines = []
    for arm in repeated:
        cells = [EMPTY if row.is_reference else _difference_cell(row.final, row.verdict) for row in arm.rows]
        # The interval of two repetitions says next to nothing.
        mean = cell(arm.mean.mean, "+.3f") if arm.mean and arm.mean.n < 3 else _difference_cell(arm.mean)
        lines.append(TableRow(arm.label, [*cells, mean]))
    return Table("activation", [*names, "mean over repetitions"], lines)


def _difference_cell(effect: Effect | None, verdict: str = "") -> Cell:
    return cell(effect and effect.mean, lambda _: f"{effect_text(effect)} {verdict}".rstrip()) if effect else EMPTY


def _filled(rows: Sequence[Row], *columns: Column) -> list[Column]:
    """Return the columns that have a figure in any row."""
    # So every column can be listed for every study: a study of one seed simply has no intervals.
    return [column for column in columns if any(column.cell(row).value is not None for row in rows)]


def _verdict_cell(row: Row) -> Cell:
    # One seed has no verdict, and what would be written of it is the same for every arm.
    if not row.verdict or (row.final and row.final.n == 1):
        return EMPTY
    return word_cell(row.verdict, VERDICTS)


def _interval_cell(row: Row) -> Cell:
    # Intervals sort by their width, so that the least sure differences stand together. The reference has none.
    width = row.final.high - row.final.low if row.final else math.nan
    return Cell(interval(row.final), width) if row.final and width > 0 else EMPTY


def _needed_cell(row: Row) -> Cell:
    if row.verdict != "undecided" or not row.final or row.final.n == 1:
        return EMPTY
    return seeds_cell(row.seeds_needed)


def _effect_cell(row: Row, effect: Effect | None) -> Cell:
    if effect is None:
        return EMPTY
    half = 0 if row.is_reference else (effect.high - effect.low) / 2
    # Half the interval is nan for one seed.
    return cell(effect.mean, lambda mean: f"{mean:+z.3f} ± {half:.3f}") if half > 0 else cell(effect.mean, "+z.3f")


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
        return Cell("never" if reach.never == reach.n else f"never in {reach.never} of {reach.n}", NEVER)
    return Cell(f"×{reach.ratio:.2f}", reach.ratio)


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 700 else "inf"  # exp(710) overflows


def _p_value(p: float) -> str:
    """Write a p value."""
    if p < 1e-4:
        return "<.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
