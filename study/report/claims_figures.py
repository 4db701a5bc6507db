"""The figures that decide a claim, beside those of any study."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean

from data.config import parse_tokenizer
from study.judge.arms import Arm
from study.judge.effects import Row
from study.report.drawing import DASHES, SYMBOLS, Figure, Style, figure, log_axis, popup, styles, trace
from study.report.figures import by_block, depth_figure
from training.probes.measures import agreement


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


def gap_figure(rows: Sequence[Row]) -> Figure:
    """Draw each head's loss minus softmax's against the size of the vocabulary."""

    def measure(row: Row) -> tuple[float, float] | None:
        return (row.final.mean, row.final.high - row.final.mean) if row.final and not row.is_reference else None

    return _by_vocabulary(rows, measure, "difference to softmax, nats per token", "linear")


def head_figure(metric: str, up: str, scale: str, rows: Sequence[Row]) -> Figure:
    """Draw what the probes measured of each head after its last step against the size of the vocabulary."""

    def measure(row: Row) -> tuple[float, float] | None:
        ends = [curve[-1][1] for run in row.arm.runs if (curve := run.curve(metric))]
        # What is 0 has no place on a logarithmic axis.
        return (fmean(ends), math.nan) if ends and (scale == "linear" or fmean(ends) > 0) else None

    return _by_vocabulary(rows, measure, up, scale)


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


def _by_vocabulary(
    rows: Sequence[Row], measure: Callable[[Row], tuple[float, float] | None], up: str, scale: str
) -> Figure:
    """Draw what is measured of a row, with half its interval or nan, as a line for each head."""
    heads: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        settings, measured = row.arm.runs[0].settings, measure(row)
        _, n_vocab = parse_tokenizer(settings["data.tokenizer"])
        if measured:
            heads.setdefault(settings.get("model.head", "softmax"), []).append((n_vocab, *measured))
    traces = []
    for color, (head, points) in enumerate(sorted(heads.items())):
        xs, ys, halves = zip(*sorted(points), strict=True)
        line = trace(head, Style(color, DASHES[0], SYMBOLS[0]), "depth", "lines+markers", xs, ys)
        line |= {"line": {"width": 2.25}, "marker": {"size": 8, "symbol": "circle"}}
        line |= {"hovertemplate": popup("vocabulary %{x:,}<br>%{y:.3f}")}
        if not any(map(math.isnan, halves)):
            line["error_y"] = {"array": [round(half, 5) for half in halves], "thickness": 1.5, "width": 4}
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


HEADS_TEXT = "after the last step, on the few tokens that the probes read"
# The figures that decide a claim, by its `figure`: title, what draws it, text. All but `vocabulary` end with the gaps.
# fmt: off
FIGURES: dict[str, list[tuple[str, Callable[[Sequence[Row]], Figure], str]]] = {
    "gaps": [],
    "depth": [
        ("Gradient against depth", depth_figure,
         "After the last step. A line that rises to the right is a gradient that vanishes on its way back."),
    ],
    "centring": [
        ("Same-sign share of W2’s gradient", centring_figure,
         "After the last step, the mean over blocks. The curve is theory for random output deltas."),
    ],
    "gates": [
        ("Gates", gate_figure,
         "Distribution of act(gate) after the last step, all blocks. The outermost bins hold all that lies beyond."),
    ],
    "vocabulary": [
        ("Heads against vocabulary", gap_figure,
         "Validation loss minus softmax’s, all heads normalised; 95 % intervals."),
        ("Sum of the sigmoids", partial(head_figure, "head/sum_sigma", "Σσ(z), mean over tokens", "log"),
         "Mean over tokens of Σσ(z) after the last step; 1 would be a distribution."),
        ("Accuracy", partial(head_figure, "head/accuracy", "top-1 accuracy", "linear"),
         f"How often the likeliest token is the next one, {HEADS_TEXT}."),
        ("Calibration", partial(head_figure, "head/ece", "expected calibration error", "linear"),
         f"Expected calibration error, 15 bins (Guo et al., 2017), {HEADS_TEXT}, which raise it."),
    ],
}
# fmt: on
