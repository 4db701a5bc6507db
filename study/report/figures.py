"""The figures of a study: functions from the table's rows to plotly figures; empty if there is nothing to draw."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from study.judge.effects import Row
from study.report.costs import COSTS, comparable_costs, cost_of
from study.report.drawing import (
    TOKENS,
    Figure,
    Point,
    end_name,
    escaped,
    figure,
    lines,
    log_axis,
    mean_line,
    popup,
    styles,
    trace,
)
from study.report.table import interval

FEW_POINTS = 5  # of a curve: then all of it is shown from the start
STEEP = 1.0  # nats above the best: tuning runs that end higher are out of view


def loss_figure(rows: Sequence[Row]) -> Figure:
    """Draw loss against tokens: validation with a band and markers, training as faint lines.

    `costs` of the figure are the titles of the other x axes that a reader can choose; the traces' `meta` has their x.
    """
    # The training loss is drawn first, so that it lies behind the validation loss.
    traces = []
    for kind, metric, perplexity in (
        ("training", "train/loss", ""),
        ("validation", "val/loss", ", perplexity %{customdata[2]:,.1f}"),
    ):
        curves = [mean_line(run.curve(metric) for run in row.arm.runs if run.records) for row in rows]
        traces += lines(rows, kind, curves, f"%{{y:.3f}}{perplexity}")
    drawn = figure(traces, TOKENS, "loss, nats per token", window=_window(traces, 1 / 8))
    if drawn:
        costs, drawn["left_out"] = comparable_costs(rows)
        drawn["costs"] = {cost: COSTS[cost] for cost in costs}
        arms = {row.arm.label: row.arm for row in rows}
        for line in traces:
            # The places are those of the points that are drawn: a long curve has been thinned by now.
            for cost in costs:
                values = cost_of(arms[line["meta"]["arm"]], cost, line["x"])
                line["meta"][cost] = [float(f"{value:.5g}") for value in values]
    return drawn


def difference_figure(rows: Sequence[Row]) -> Figure:
    """Draw each validation loss minus the reference's of the same seed and tokens."""
    # The reference's own line is 0 by construction. It is drawn, so that every arm of the legend has a line.
    lines_of_arms, others = [], 0
    for row in rows:
        lines_of_arms.append(mean_line(difference_curves(row)))
        others += bool(lines_of_arms[-1]) and not row.is_reference
    if not others:  # the reference alone would be a line at 0
        return {}
    traces = lines(rows, "difference", lines_of_arms, "%{y:+.3f}")
    drawn = figure(traces, TOKENS, "difference, nats per token", window=_window(traces, 1 / 20))
    drawn["layout"]["yaxis"]["zeroline"] = True
    drawn["layout"]["shapes"] = [{"xref": "paper", "x0": 0, "x1": 1, "y0": -rows[0].margin, "y1": rows[0].margin}]
    return drawn


def difference_curves(row: Row) -> list[list[tuple[float, float]]]:
    """Return a curve for each seed of an arm: its validation loss minus the reference's, at the tokens of both."""
    partners = {run.seed: dict(run.curve("val/loss")) for run in (row.partner.runs if row.partner else ())}
    curves = []
    for run in row.arm.runs:
        # Runs of one seed see the same batches in the same order, so that their difference has less noise than either.
        theirs = partners.get(run.seed, {})
        if run.records:
            curves.append([(x, y - theirs[x]) for x, y in run.curve("val/loss") if x in theirs])
    return curves


def final_figure(rows: Sequence[Row]) -> Figure:
    """Draw the final differences with their intervals, best arm on top, and each seed's own as faint dots."""
    measured = [(row, row.final) for row in rows if row.final and not row.is_reference]
    measured.sort(key=lambda pair: -pair[1].mean)  # the y axis points up
    looks, traces = styles([row.arm for row in rows]), []
    for place, (row, effect) in enumerate(measured):
        label = row.arm.label
        style = looks[label]
        several = effect.n > 1
        if several:
            theirs = row.partner.finals("val/loss") if row.partner else {}
            dots = [round(loss - theirs[seed], 5) for seed, loss in row.arm.finals("val/loss").items()]
            look = {"opacity": 0.4, "hoverinfo": "skip", "marker": {"size": 5, "symbol": "circle"}}
            traces.append(trace(label, style, "dot", "markers", dots, [place - 0.22] * len(dots), **look))
        hover = f"%{{x:+.3f}} nats per token{' ' + interval(effect) if several else ''}"
        look = {"hovertemplate": popup(hover), "marker": {"size": 8, "symbol": style.symbol}}
        if several:
            look["error_x"] = {"array": [round(effect.high - effect.mean, 5)], "thickness": 2, "width": 5}
        traces.append(trace(label, style, "dot", "markers", [round(effect.mean, 5)], [place], **look))
    drawn = figure(traces, f"final loss minus {escaped(rows[0].reference)}’s, nats per token", "", ends=False)
    if not drawn:
        return {}
    # The names of the arms are the ticks, so that the figure grows with them, and its left margin too.
    names = [end_name(row.arm.label, 48) for row, _ in measured]
    drawn["height"] = 78 + 30 * len(names)
    layout = drawn["layout"]
    layout["margin"]["l"] = 26 + 7 * max(map(len, names))
    layout["xaxis"] |= {"zeroline": True, "showgrid": True, "tickformat": "+.3~f"}
    layout["yaxis"] |= {
        "tickmode": "array",
        "tickvals": [*range(len(names))],
        "ticktext": [*map(escaped, names)],
        "range": [-0.6, len(names) - 0.4],
        "showgrid": False,
        "fixedrange": True,
    }
    layout["shapes"] = [{"yref": "paper", "y0": 0, "y1": 1, "x0": -rows[0].margin, "x1": rows[0].margin}]
    return drawn


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw the gradient that reaches each block, relative to the last block, after the last step of finished runs.

    A gradient of 0 has no place on a logarithmic axis: runs with one are left out.
    """
    lines_of_arms = []
    for row in rows:
        curves = []
        for run in row.arm.runs:
            steps = by_block(run.records).get("grad/blocks.*/rms", {}) if run.status == "finished" else {}
            blocks = steps[max(steps)] if steps else {}
            # Networks of different depth share one axis: a block's place is its share of the way to the last.
            if len(blocks) > 1 and min(blocks.values()) > 0:
                last = len(blocks) - 1
                curves.append([(block / last, blocks[block] / blocks[last]) for block in sorted(blocks)])
        lines_of_arms.append(mean_line(curves))
    traces = lines(rows, "depth", lines_of_arms, "at %{x:.2f} of the depth<br>×%{y:.3f} of the last block’s")
    drawn = figure(traces, "depth: from the first block (0) to the last (1)", "gradient, relative to the last block")
    if drawn:
        drawn["layout"]["yaxis"] |= {"type": "log", "dtick": "D2"}
        drawn["layout"]["xaxis"]["tickformat"] = ""
    return drawn


def heat_maps(rows: Sequence[Row]) -> Figure:
    """Return each measurement of each arm by block and step, as a mean over seeds, with what it means in words.

    measurements.csv holds these words, a line for each metric with * for the block, in the order of the page.
    """
    maps: Figure = {}
    for row in rows:
        measured = [blocks for run in row.arm.runs if (blocks := by_block(run.records))]
        for key in measured[0] if measured else ():
            # A seed that was stopped has fewer steps: the mean is over the steps that all seeds have.
            runs = [blocks[key] for blocks in measured if key in blocks]
            steps = [step for step in runs[0] if all(step in run for run in runs)]
            if not steps:
                continue
            # Four digits are more than a colour shows, and keep the page small.
            z = []
            for block in sorted(runs[0][steps[0]]):
                means = [fmean(run[step][block] for run in runs) for step in steps]
                z.append([float(f"{mean:.4g}") for mean in means])
            maps.setdefault(key, {})[row.arm.label] = {"x": steps, "z": z}
    with Path(__file__).with_name("measurements.csv").open(encoding="utf-8", newline="") as file:
        words = {line["metric"]: line for line in csv.DictReader(file)}
    # A metric without a line of its own comes last, under the name that it has in metrics.jsonl.
    for key in maps:
        words.setdefault(key, {"group": "Other", "name": key, "unit": "", "scale": "linear", "text": ""})
    return {"maps": {key: {"arms": maps[key], **words[key]} for key in words if key in maps}} if maps else {}


def by_block(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[int, float]]]:
    """Return the measurements of single blocks by path (with * for the block), step and block.

    A step is left out where a block has no measurement, or one that is not finite.
    """
    paths: dict[str, dict[int, dict[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            block = re.search(r"blocks\.(\d+)", key)
            if block:
                path = key.replace(block[0], "blocks.*")
                paths.setdefault(path, {}).setdefault(record["step"], {})[int(block[1])] = value
    whole = {}
    for path, steps in paths.items():
        blocks = max(map(len, steps.values()))
        complete = {step: at for step, at in steps.items() if len(at) == blocks and None not in at.values()}
        if complete:
            whole[path] = complete
    return whole


def rate_figure(rows: Sequence[Row]) -> Figure:
    """Draw final losses against learning rates, of brackets or else of tuning runs; a ring marks the arm's rate."""
    curves, rings = [], []
    for row in rows:
        losses = row.arm.losses_by_rate()
        found = {lr: list(of_seeds.values()) for lr, of_seeds in losses.items() if of_seeds}
        curves.append([Point(lr, fmean(values), min(values), max(values), len(values)) for lr, values in found.items()])
        chosen = row.arm.mean("val/loss") if row.arm.bracket else fmean(found.get(row.arm.lr, [math.nan]))
        if chosen is not None and not math.isnan(chosen):
            rings.append((row.arm.label, row.arm.lr, chosen))
    points = [point for curve in curves for point in curve]
    if not points:
        return {}
    traces = lines(rows, "rate", curves, "learning rate %{x:.3g}<br>validation loss %{y:.3f}")
    looks = styles([row.arm for row in rows])
    look = {"marker": {"size": 15, "symbol": "circle-open", "line": {"width": 2}}, "hoverinfo": "skip"}
    for label, lr, loss in rings:
        traces.append(trace(label, looks[label], "chosen", "markers", [lr], [loss], cliponaxis=False, **look))
    # A rate that diverged nearly would flatten the curves around the best ones.
    best = min(point.low for point in points)
    worst = min(max(point.high for point in points), best + STEEP)
    pad = 0.04 * (worst - best)
    drawn = figure(traces, "learning rate", "loss, nats per token", window=[best - pad, worst + pad], ends=False)
    drawn["layout"]["xaxis"] |= log_axis([point.x for point in points], ".2g", room=0.06)
    return drawn


def _window(traces: Sequence[Figure], since: float) -> list[float] | None:
    """Return the range of losses after this share of the tokens, to be shown first: the fall before it dwarfs the rest.

    Single batches are noisy, so the training loss widens the range only downwards.
    """
    main = [line for line in traces if line["meta"]["kind"] in ("validation", "difference")]
    end = max((line["x"][-1] for line in main), default=0)
    lows, highs = [], []
    for line in traces:
        shown = [y for x, y in zip(line["x"], line["y"], strict=True) if x >= since * end]
        lows += shown
        if line["meta"]["kind"] != "training":
            highs += shown
    few = max((len(line["x"]) for line in main), default=0) < FEW_POINTS
    if few or len(highs) < 2 or min(highs) == max(highs):
        return None
    low, high = min(lows), max(highs)
    return [low - 0.03 * (high - low), high + 0.05 * (high - low)]
