"""The figures that decide a claim, beside those of any study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from data.config import parse_tokenizer
from study.judge.arms import Arm
from study.judge.effects import Row
from study.report.drawing import DASHES, SYMBOLS, Figure, Style, figure, log_axis, popup, styles, trace
from study.report.figures import by_block
from training.probes.measures import agreement

OF_HEADS = {  # what the probes measure of a head: title of the y axis, its scale
    "head/sum_sigma": ("Σσ(z), mean over tokens", "log"),
    "head/accuracy": ("top-1 accuracy", "linear"),
    "head/ece": ("expected calibration error", "linear"),
}


@dataclass(frozen=True)
class HeadPoint:
    """A value of a head at a size of vocabulary, with half its interval (nan if it has none)."""

    n_vocab: int
    value: float
    half: float = math.nan


def centring_figure(rows: Sequence[Row]) -> Figure:
    """Draw the pairwise sign agreement in W2's gradient against the mean share ρ, and the curve of theory."""
    looks, traces = styles([row.arm for row in rows]), []
    for row in rows:
        label = row.arm.label
        share = _at_end(row.arm, "act/blocks.*/mean_share")
        same_sign = _at_end(row.arm, "sign/blocks.*/down_batch_pairs")
        if share is None or same_sign is None:
            continue
        marker = {"size": 10, "symbol": looks[label].symbol}
        hover = popup("mean share %{x:.3f}<br>sign agreement %{y:.3f}")
        point = trace(label, looks[label], "dot", "markers", [round(share, 4)], [same_sign])
        traces.append(point | {"marker": marker, "hovertemplate": hover})
    if not traces:
        return {}
    xs = [i / 50 for i in range(51)]
    # The neutral colour stands for gelu elsewhere; the thin line without markers cannot be taken for an arm.
    neutral = Style(2, DASHES[0], SYMBOLS[0])
    theory = trace("random deltas", neutral, "theory", "lines", xs, map(agreement, xs))
    theory |= {"hoverinfo": "skip", "line": {"width": 1}}
    drawn = figure([theory, *traces], "mean share ρ of a hidden unit", "pairwise sign agreement", ends=False)
    drawn["layout"]["xaxis"] |= {"range": [-0.02, 1.02], "tickformat": ""}
    return drawn


def vocabulary_figures(rows: Sequence[Row]) -> list[Figure]:
    """Draw, for each head against the vocabulary, the loss minus softmax's and what `OF_HEADS` names."""
    gaps: dict[str, list[HeadPoint]] = {}
    measured: dict[str, dict[str, list[HeadPoint]]] = {metric: {} for metric in OF_HEADS}
    for row in rows:
        settings = row.arm.runs[0].settings
        head = settings.get("model.head", "softmax")
        _, n_vocab = parse_tokenizer(settings["data.tokenizer"])
        if row.final and not row.is_reference:
            gaps.setdefault(head, []).append(HeadPoint(n_vocab, row.final.mean, row.final.high - row.final.mean))
        for metric, (_, scale) in OF_HEADS.items():
            # What is 0 has no place on a logarithmic axis.
            ends = [curve[-1][1] for run in row.arm.runs if (curve := run.curve(metric))]
            if ends and (scale == "linear" or fmean(ends) > 0):
                measured[metric].setdefault(head, []).append(HeadPoint(n_vocab, fmean(ends)))
    figures = [_by_vocabulary(gaps, "difference to softmax, nats per token", "linear")]
    figures += [_by_vocabulary(measured[metric], title, scale) for metric, (title, scale) in OF_HEADS.items()]
    return figures


def gate_figure(rows: Sequence[Row]) -> Figure:
    """Draw the distribution of act(gate) of each gated arm, all blocks and seeds together, as shares of bins."""
    looks, traces = styles([row.arm for row in rows]), []
    for row in rows:
        histograms = []
        for run in row.arm.runs:
            histograms += (run.summary or {}).get("gate/histogram", {}).values()
        if not histograms:
            continue
        label, edges = row.arm.label, histograms[0]["edges"]
        # All histograms have the same bins, so that they add up.
        counts = [sum(bins) for bins in zip(*(histogram["counts"] for histogram in histograms), strict=True)]
        middles = [round((left + right) / 2, 4) for left, right in pairwise(edges)]
        shares = [count / max(sum(counts), 1) for count in counts]
        line = {"width": 2, "shape": "hvh", "dash": looks[label].dash}
        hover = popup("act(gate) about %{x:.2f}<br>share %{y:.3f}")
        # The kind of a validation curve, so that the page's script names its end.
        traces.append(
            trace(label, looks[label], "validation", "lines", middles, shares, line=line, hovertemplate=hover)
        )
    drawn = figure(traces, "act(gate)", "share of gates")
    if drawn:
        drawn["layout"]["xaxis"] |= {"range": [traces[0]["x"][0], traces[0]["x"][-1]], "tickformat": ""}
    return drawn


def _by_vocabulary(heads: dict[str, list[HeadPoint]], up: str, scale: str) -> Figure:
    traces = []
    for color, (head, points) in enumerate(sorted(heads.items())):
        points = sorted(points, key=lambda point: point.n_vocab)
        style = Style(color, DASHES[0], SYMBOLS[0])
        xs, ys = [point.n_vocab for point in points], [point.value for point in points]
        line = trace(head, style, "depth", "lines+markers", xs, ys)
        line |= {"line": {"width": 2.25}, "marker": {"size": 8, "symbol": "circle"}}
        line |= {"hovertemplate": popup("vocabulary %{x:,}<br>%{y:.3f}")}
        if not any(math.isnan(point.half) for point in points):
            line["error_y"] = {"array": [round(point.half, 5) for point in points], "thickness": 1.5, "width": 4}
        traces.append(line)
    drawn = figure(traces, "vocabulary", up)
    if drawn:
        drawn["layout"]["yaxis"]["type"] = scale
        drawn["layout"]["xaxis"] |= log_axis([x for line in traces for x in line["x"]], ",", room=0.1)
    return drawn


def _at_end(arm: Arm, path: str) -> float | None:
    """Return a measurement of single blocks after the last step, the mean over blocks and seeds."""
    ends = []
    for run in arm.runs:
        steps = by_block(run.records).get(path)
        if steps:
            ends.append(fmean(steps[max(steps)].values()))
    return fmean(ends) if ends else None
