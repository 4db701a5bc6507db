"""The pictures that decide a claim, beside those of any study."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from data.config import parse_tokenizer
from study.judge.arms import Arm
from study.judge.effects import Row
from study.report.drawing import Figure, escaped, figure, meta_of, popup, styles
from study.report.figures import by_block
from training.probes.measures import agreement

OF_HEADS = {  # measurement: axis, scale
    "head/sum_sigma": ("Σσ(z), mean over tokens", "log"),
    "head/accuracy": ("top-1 accuracy", "linear"),
    "head/ece": ("expected calibration error", "linear"),
}


def centring_figure(rows: Sequence[Row]) -> Figure:
    """Draw the pairwise sign agreement in W2's gradient against the mean share ρ, and the curve of theory."""
    look, traces = styles([row.arm for row in rows]), []
    for row in rows:
        x, y = (_at_end(row.arm, path) for path in ("act/blocks.*/mean_share", "sign/blocks.*/down_batch_pairs"))
        if x is None or y is None:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escaped(row.arm.label),
                "x": [round(x, 4)],
                "y": [round(y, 4)],
                "marker": {"size": 10, "symbol": look[row.arm.label].symbol},
                "meta": meta_of(row, look, "dot"),
                "hovertemplate": popup("mean share %{x:.3f}<br>sign agreement %{y:.3f}"),
            }
        )
    if not traces:
        return {}
    xs = [i / 50 for i in range(51)]
    theory = {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": [round(agreement(x), 4) for x in xs],
        "hoverinfo": "skip",
    }
    meta = traces[0]["meta"] | {"arm": "theory", "kind": "theory", "color": 2, "label": "random deltas"}
    drawn = figure(
        [theory | {"name": "random deltas", "meta": meta, "line": {"width": 1}}, *traces],
        "mean share ρ of a hidden unit",
        "",
    )
    drawn["layout"]["yaxis"]["title"]["text"] = "pairwise sign agreement"
    drawn["layout"]["xaxis"] |= {"range": [-0.02, 1.02], "tickformat": ""}
    drawn["layout"]["margin"]["r"] = 24
    return drawn


def vocabulary_figures(rows: Sequence[Row]) -> list[Figure]:
    """Draw, for each head against the vocabulary, the loss minus softmax's and what `OF_HEADS` names."""
    gaps: dict[str, list[tuple[int, float, float]]] = {}
    measured: dict[str, dict[str, list[tuple[int, float, float]]]] = {metric: {} for metric in OF_HEADS}
    for row in rows:
        settings = row.arm.runs[0].settings
        head, n_vocab = settings.get("model.head", "softmax"), parse_tokenizer(settings["data.tokenizer"])[1]
        if row.final and not row.is_reference:
            gaps.setdefault(head, []).append((n_vocab, row.final.mean, row.final.high - row.final.mean))
        for metric, (_, scale) in OF_HEADS.items():
            value = _last(row.arm, metric)
            if value is not None and (value > 0 or scale == "linear"):
                measured[metric].setdefault(head, []).append((n_vocab, value, math.nan))
    figures = [_by_vocabulary(measured[metric], *look) for metric, look in OF_HEADS.items()]
    return [_by_vocabulary(gaps, "difference to softmax, nats per token", "linear"), *figures]


def gate_figure(rows: Sequence[Row]) -> Figure:
    """Draw the distribution of act(gate) of each gated arm, all blocks and seeds together, as shares of bins."""
    look, traces = styles([row.arm for row in rows]), []
    for row in rows:
        found = [h for run in row.arm.runs for h in (run.summary or {}).get("gate/histogram", {}).values()]
        if not found:
            continue
        counts = [sum(bins) for bins in zip(*(h["counts"] for h in found), strict=True)]
        edges, label = found[0]["edges"], row.arm.label
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": escaped(label),
                "x": [round((a + b) / 2, 4) for a, b in pairwise(edges)],
                "y": [round(count / max(sum(counts), 1), 5) for count in counts],
                "line": {"width": 2, "shape": "hvh", "dash": look[label].dash},
                "meta": meta_of(row, look, "validation"),
                "hovertemplate": popup("act(gate) about %{x:.2f}<br>share %{y:.3f}"),
            }
        )
    if not traces:
        return {}
    drawn = figure(traces, "act(gate)", "share of gates")
    drawn["layout"]["xaxis"] |= {"range": [traces[0]["x"][0], traces[0]["x"][-1]], "tickformat": ""}
    return drawn


def _at_end(arm: Arm, path: str) -> float | None:
    """Return a per-block measurement after the last step, the mean over blocks and seeds."""
    steps = [found for run in arm.runs if (found := by_block(run.records).get(path))]
    return fmean(fmean(at[max(at)].values()) for at in steps) if steps else None


def _by_vocabulary(lines: dict[str, list[tuple[int, float, float]]], up: str, scale: str) -> Figure:
    traces = []
    for i, (head, points) in enumerate(sorted(lines.items())):
        xs, ys, halves = zip(*sorted(points), strict=True)
        meta = {"arm": head, "kind": "depth", "color": i, "end": head, "label": head}
        trace = {"type": "scatter", "mode": "lines+markers", "name": head, "x": xs, "y": [round(y, 5) for y in ys]}
        trace |= {"meta": meta, "line": {"width": 2.25}, "marker": {"size": 8, "symbol": "circle"}}
        if not any(map(math.isnan, halves)):
            trace["error_y"] = {"array": [round(half, 5) for half in halves], "thickness": 1.5, "width": 4}
        traces.append(trace | {"hovertemplate": popup("vocabulary %{x:,}<br>%{y:.3f}")})
    if not traces:
        return {}
    drawn = figure(traces, "vocabulary", up)
    ticks = sorted({x for trace in traces for x in trace["x"]})
    drawn["layout"]["yaxis"]["type"] = scale
    drawn["layout"]["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{x:,}" for x in ticks]}
    drawn["layout"]["xaxis"]["range"] = [math.log10(ticks[0]) - 0.06, math.log10(ticks[-1]) + 0.1]
    return drawn


def _last(arm: Arm, metric: str) -> float | None:
    """Return the last value of a metric, the mean over seeds."""
    ends = [curve[-1][1] for run in arm.runs if (curve := run.curve(metric))]
    return fmean(ends) if ends else None
