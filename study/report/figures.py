"""The report's figures: functions from the table's rows to plotly figures in the form of dicts."""

import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from study.judge.effects import Row
from study.judge.statistics import SMALLEST
from study.report.drawing import Figure, begun, end_name, escaped, figure, lines, meta_of, popup, spread, styles
from study.report.table import interval

STEEP = 1.0  # nats above the best: learning rates that do worse are out of view


def loss_figure(rows: Sequence[Row]) -> Figure:
    """Draw loss against tokens: validation with a band and markers, training as faint lines; empty without records."""
    validation = [spread(run.curve("val/loss") for run in begun(row)) for row in rows]
    training = [spread(run.curve("train/loss") for run in begun(row)) for row in rows]
    hover = "%{x:,} tokens<br>training loss %{y:.3f}"
    traces = lines(rows, "training", training, hover)
    hover = "%{x:,} tokens<br>validation loss %{y:.3f}<br>perplexity %{customdata[2]:,.1f}"
    traces += lines(rows, "validation", validation, hover)
    return figure(traces, "training tokens", "loss, nats per token", window=_window(traces, 1 / 8)) if traces else {}


def difference_figure(rows: Sequence[Row]) -> Figure:
    """Draw each validation loss minus the reference's of the same seed and tokens; empty without a pair."""
    curves = []
    for row in rows:
        theirs = {run.seed: dict(run.curve("val/loss")) for run in (row.partner.runs if row.partner else ())}
        ours = [(run.curve("val/loss"), theirs.get(run.seed, {})) for run in row.arm.runs if run.records]
        curves.append(spread([(x, y - level[x]) for x, y in curve if x in level] for curve, level in ours))
    if not any(curve for row, curve in zip(rows, curves, strict=True) if not row.is_reference):
        return {}
    hover = f"%{{x:,}} tokens<br>%{{y:+.3f}} nats per token against {escaped(rows[0].reference)}"
    traces = lines(rows, "difference", curves, hover)
    drawn = figure(traces, "training tokens", "difference, nats per token", window=_window(traces, 1 / 20))
    drawn["layout"]["yaxis"]["zeroline"] = True
    drawn["layout"]["shapes"] = [{"xref": "paper", "x0": 0, "x1": 1, "y0": -SMALLEST, "y1": SMALLEST}]
    return drawn


def final_figure(rows: Sequence[Row]) -> Figure:
    """Draw the final differences with their intervals, and each seed's own; empty without a difference."""
    ordered = sorted(
        (r for r in rows if r.final and not r.is_reference), key=lambda r: -(r.final.mean if r.final else 0)
    )
    look, traces = styles([row.arm for row in rows]), []
    for place, row in enumerate(ordered):
        assert row.final
        seeds = [a - b for a, b in _finals(row)] if row.final.n > 1 else []
        half = None if math.isnan(row.final.low) else row.final.high - row.final.mean
        said = f"%{{x:+.3f}} nats per token{'' if half is None else ' ' + interval(row.final)}"
        shared = {
            "type": "scatter",
            "mode": "markers",
            "name": escaped(row.arm.label),
            "meta": meta_of(row, look, "dot"),
        }
        dots = {
            "x": [round(d, 5) for d in seeds],
            "y": [place - 0.22] * len(seeds),
            "opacity": 0.4,
            "hoverinfo": "skip",
        }
        mean = {"x": [round(row.final.mean, 5)], "y": [place], "hovertemplate": popup(said)}
        if half is not None:
            mean["error_x"] = {"array": [round(half, 5)], "thickness": 2, "width": 5}
        symbol = look[row.arm.label].symbol
        traces += [shared | dots | {"marker": {"size": 5, "symbol": "circle"}}] if seeds else []
        traces.append(shared | mean | {"marker": {"size": 10, "symbol": symbol}})
    if not traces:
        return {}
    drawn = figure(traces, f"final loss minus {escaped(rows[0].reference)}’s, nats per token", "", ends=False)
    names = [end_name(row.arm.label, 48) for row in ordered]
    drawn["height"] = 78 + 30 * len(names)
    drawn["layout"]["margin"] |= {"l": 26 + 7 * max(map(len, names)), "r": 24}
    drawn["layout"]["xaxis"] |= {"zeroline": True, "showgrid": True, "tickformat": "+.3~f"}
    ticks = {"tickmode": "array", "tickvals": [*range(len(names))], "ticktext": [*map(escaped, names)]}
    drawn["layout"]["yaxis"] |= ticks | {"range": [-0.6, len(names) - 0.4], "showgrid": False, "fixedrange": True}
    drawn["layout"]["shapes"] = [{"yref": "paper", "y0": 0, "y1": 1, "x0": -SMALLEST, "x1": SMALLEST}]
    return drawn


def depth_figure(rows: Sequence[Row]) -> Figure:
    """Draw the gradient that reaches each block, relative to the last, of finished runs; empty without probes.

    A gradient of 0 has no place on the axis: runs with one are left out.
    """
    curves = []
    for row in rows:
        done = [by_block(run.records) for run in row.arm.runs if run.status == "finished"]
        steps = [found for blocks in done if (found := blocks.get("grad/blocks.*/rms"))]
        ends = [at for found in steps if len(at := found[max(found)]) > 1 and min(at.values()) > 0]
        curves.append(spread([(i / (len(at) - 1), at[i] / at[len(at) - 1]) for i in sorted(at)] for at in ends))
    if not any(curves):
        return {}
    traces = lines(rows, "depth", curves, "at %{x:.2f} of the depth<br>×%{y:.3f} of the last block’s")
    drawn = figure(traces, "depth: from the first block (0) to the last (1)", "gradient, relative to the last block")
    drawn["layout"]["yaxis"] |= {"type": "log", "dtick": "D2"}
    drawn["layout"]["xaxis"]["tickformat"] = ""
    return drawn


def heat_maps(rows: Sequence[Row]) -> Figure:
    """Return each measurement of each arm by block and step, the mean over seeds; empty without probes."""
    maps: Figure = {}
    for row in rows:
        found = [blocks for run in row.arm.runs if (blocks := by_block(run.records))]
        for measure in found[0] if found else ():
            runs = [blocks[measure] for blocks in found if measure in blocks]
            steps = [step for step in runs[0] if all(step in run for run in runs)]
            if not steps:
                continue
            z = [[fmean(run[step][i] for run in runs) for step in steps] for i in sorted(runs[0][steps[0]])]
            rounded = [[float(f"{value:.4g}") for value in line] for line in z]
            maps.setdefault(measure, {})[row.arm.label] = {"x": steps, "z": rounded}
    return {"maps": maps} if maps else {}


def by_block(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[int, float]]]:
    """Return the per-block measurements by path (with * for the block), step and block.

    A measurement that some block lacks at a step, or whose value is no number, is left out there.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            if "blocks." in key:
                path, block = re.sub(r"blocks\.\d+", "blocks.*", key), int(re.findall(r"blocks\.(\d+)", key)[0])
                found.setdefault(path, {}).setdefault(record["step"], {})[block] = value
    for steps in found.values():
        most = max(map(len, steps.values()))
        for step in [s for s, at in steps.items() if len(at) < most or None in at.values()]:
            del steps[step]
    return {path: steps for path, steps in found.items() if steps}


def rate_figure(rows: Sequence[Row]) -> Figure:
    """Draw the tuning runs' final losses against their learning rates, the chosen rate ringed; empty without them."""
    curves = []
    for row in rows:
        tuned = {lr: [*losses.values()] for lr, losses in row.arm.tuned().items() if losses}
        curves.append([(lr, fmean(losses), min(losses), max(losses), len(losses)) for lr, losses in tuned.items()])
    if not any(curves):
        return {}
    traces = lines(rows, "rate", curves, "learning rate %{x:.3g}<br>validation loss %{y:.3f}")
    for row, curve in zip(rows, curves, strict=True):
        chosen = [(x, y) for x, y, *_ in curve if x == row.arm.lr]
        ring = {"size": 15, "symbol": "circle-open", "line": {"width": 2}}
        look = {"type": "scatter", "mode": "markers", "marker": ring, "hoverinfo": "skip", "cliponaxis": False}
        meta = meta_of(row, styles([r.arm for r in rows]), "chosen")
        traces += [look | {"x": [x], "y": [round(y, 5)], "name": "", "meta": meta} for x, y in chosen]
    lows, highs = zip(*((low, high) for curve in curves for _, _, low, high, _ in curve), strict=True)
    best, worst = min(lows), min(max(highs), min(lows) + STEEP)
    pad = 0.04 * (worst - best)
    drawn = figure(traces, "learning rate", "loss, nats per token", window=[best - pad, worst + pad], ends=False)
    rates = [x for curve in curves for x, *_ in curve]
    drawn["layout"]["margin"]["r"] = 24
    # Ticks are the rates that were tried; of close neighbours (extended grids) only the first is named.
    ticks: list[float] = []
    for rate in sorted(set(rates)):
        ticks += [rate] if not ticks or rate > 1.25 * ticks[-1] else []
    drawn["layout"]["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{rate:.2g}" for rate in ticks]}
    drawn["layout"]["xaxis"]["range"] = [math.log10(min(rates)) - 0.06, math.log10(max(rates)) + 0.06]
    return drawn


def _window(traces: Sequence[Figure], since: float) -> list[float] | None:
    """Return what to show first: the fall from the initial loss would flatten all that the curves differ in."""
    main = [t for t in traces if t["meta"]["kind"] in ("validation", "difference")]
    end = max((trace["x"][-1] for trace in main), default=0)
    seen = [(t["meta"]["kind"], y) for t in traces for x, y in zip(t["x"], t["y"], strict=True) if x >= since * end]
    shown = [y for kind, y in seen if kind != "training"]
    if len(shown) < 2 or min(shown) == max(shown):
        return None
    low, high = min(y for _, y in seen), max(shown)
    return [low - 0.03 * (high - low), high + 0.05 * (high - low)]


def _finals(row: Row) -> list[tuple[float, float]]:
    theirs = row.partner.finals("val/loss") if row.partner else {}
    return [(loss, theirs[seed]) for seed, loss in row.arm.finals("val/loss").items()]
