"""How a line is drawn, whatever it shows: colours, a mean over seeds with its band, the layout around it."""

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from study.judge.arms import ACTIVATION, KNOWN, Arm
from study.judge.effects import Row
from study.judge.results import Run

Figure = dict[str, Any]
Point = tuple[float, float, float, float, int]  # x; mean, lowest and highest over seeds; how many they are

# Okabe and Ito's colours (2008), each shifted for contrast with its ground; gelu, the usual reference, is the neutral.
PALETTE = {
    "light": ("#cf5200", "#0072b2", "#24292f", "#b4518a", "#00875f", "#3f9fd8", "#c48400", "#7d7400"),
    "dark": ("#ff8a4c", "#4ba6e8", "#f0f2f4", "#e59ac6", "#2cc79b", "#8fd3ff", "#f2b632", "#e6dc5a"),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
FEW = 8  # up to so many arms their lines are bold, and training loss is shown from the start
POINTS = 20_000  # in all curves of a figure together, so that the largest study still opens at once
CURVE = 1000  # a curve needs no more points than a screen has pixels


@dataclass(frozen=True)
class Style:
    """How an arm is drawn wherever it appears; `color` is an index into `PALETTE`."""

    color: int
    dash: str
    symbol: str


def styles(arms: Sequence[Arm]) -> dict[str, Style]:
    """Give each arm, by label, its activation's colour, and dashes for what else varies or once colours are used up.

    The five best known activations have the same colour on every page; others take what those of this page leave. Where
    all arms have one activation, the colours go to what else varies.
    """
    variants = {arm.label: " · ".join(v for key, v in arm.parts.items() if key != ACTIVATION) for arm in arms}
    alone = len({arm.activation for arm in arms}) < min(2, len(arms))
    hues = variants if alone else {arm.label: arm.activation for arm in arms}
    known = [] if alone else [*KNOWN]
    taken = {known.index(name) for name in hues.values() if name in known}
    free = (i for i in itertools.count() if i not in taken)
    hue = {name: known.index(name) if name in known else next(free) for name in dict.fromkeys(hues.values())}
    variant, looks, count = [*dict.fromkeys(variants.values())], {}, len(SYMBOLS)
    for label, name in hues.items():
        i = hue[name]
        dash = i // count + (0 if alone else variant.index(variants[label]))
        looks[label] = Style(i % count, DASHES[dash % len(DASHES)], SYMBOLS[i % count])
    return looks


def spread(curves: Iterable[Sequence[tuple[float, float]]]) -> list[Point]:
    """Return mean, lowest, highest and number of several curves where all of them have a point."""
    tables = [dict(curve) for curve in curves]
    common = [x for x in tables[0] if all(x in table for table in tables)] if tables else []
    at = {x: [table[x] for table in tables] for x in common}
    return [(x, fmean(values), min(values), max(values), len(values)) for x, values in at.items()]


def thin(points: Sequence[Any], limit: int = CURVE) -> list[Any]:
    """Keep at most `limit` points at even distances, the first and the last among them."""
    if len(points) <= limit:
        return [*points]
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def figure(traces: list[Figure], across: str, up: str, window: list[float] | None = None, ends: bool = True) -> Figure:
    """Lay traces out. The names of the curves stand in the right margin, where the figure has `ends` to name."""
    longest = max(len(end_name(trace["meta"]["arm"])) for trace in traces)
    axis = {"showline": False, "zeroline": False, "ticks": "", "automargin": False}
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 62, "r": 24 + 7 * longest, "t": 12, "b": 48},
        "xaxis": axis | {"title": {"text": across}, "tickformat": "~s", "showgrid": False},
        "yaxis": axis | {"title": {"text": up}},
    }
    if window:
        layout["yaxis"]["range"] = window
    if ends:
        layout["xaxis"]["range"] = [
            0,
            1.015 * max(trace["x"][-1] for trace in traces if trace["meta"]["kind"] != "band") or 1,
        ]
    return {"data": traces, "layout": layout}


def lines(rows: Sequence[Row], kind: str, curves: Sequence[Sequence[Point]], hover: str) -> list[Figure]:
    """Draw a line for each row that has points, and below it a band where there are several seeds.

    `meta` tells the page's script whose line it is, and of what kind; colours are the script's, by theme.
    """
    look, traces = styles([row.arm for row in rows]), []
    drawn = [(row, curve) for row, curve in zip(rows, curves, strict=True) if curve]
    limit = min(CURVE, max(100, POINTS // max(1, len(drawn))))
    faint, many = kind == "training", len(drawn) > FEW
    for row, curve in drawn:
        points, style = thin(curve, limit), look[row.arm.label]
        xs, ys, lows, highs, (seeds, *_) = zip(*points, strict=True)
        shared = {"type": "scatter", "name": escaped(row.arm.label)}
        several = seeds > 1 and not faint and kind != "rate"
        if several:
            band = {"x": [*xs, *reversed(xs)], "y": [round(y, 5) for y in (*highs, *reversed(lows))]}
            look_of_band = {"mode": "lines", "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
            traces.append(shared | band | look_of_band | {"meta": meta_of(row, look, "band")})
        said = (
            f"{hover}<br>mean of {seeds} seeds, %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}" if several else hover
        )
        trace = shared | {
            "mode": "lines" if faint else "lines+markers",
            "x": xs,
            "y": [round(y, 5) for y in ys],
            "meta": meta_of(row, look, kind),
            "hovertemplate": popup(said),
            "line": {"width": 1 if faint else 1.4 if many else 2.25, "dash": style.dash},
            "opacity": 0.3 if faint else 1,
        }
        if not faint:
            trace["marker"] = {"symbol": style.symbol, "size": 4 if many else 7, "maxdisplayed": 24}
            ranges = [[round(low, 5), round(high, 5)] for low, high in zip(lows, highs, strict=True)]
            trace["customdata"] = [[*r, _perplexity(y)] for r, y in zip(ranges, ys, strict=True)]
        traces.append(trace)
    return traces


def begun(row: Row) -> list[Run]:
    """Return the runs that have a record."""
    return [run for run in row.arm.runs if run.records]


def meta_of(row: Row, look: dict[str, Style], kind: str) -> Figure:
    """Return what the page's script knows of a trace: whose it is, of what kind, its colour and its names."""
    label = row.arm.label
    return {
        "arm": label,
        "kind": kind,
        "color": look[label].color,
        "end": escaped(end_name(label)),
        "label": escaped(label),
    }


def popup(text: str) -> str:
    """Return what hovering shows below the arm's name."""
    return f"<b>%{{meta.label}}</b><br>{text}<extra></extra>"


def _perplexity(loss: float) -> float | None:
    return round(math.exp(loss), 3) if loss < 100 else None


def escaped(name: str) -> str:
    """Escape what plotly would read as a tag, so that a name stays what it is."""
    return html.escape(name, quote=False)


def end_name(name: str, limit: int = 24) -> str:
    """Shorten a name to what fits beside the end of its curve: settings by their values alone, then cut."""
    if len(name) > limit:
        first, *settings = name.split(" · ")
        name = " · ".join([first, *(setting.rpartition("=")[2] for setting in settings)])
    return name if len(name) <= limit else name[: limit - 1] + "…"
