"""How an arm is drawn, whatever the figure shows: its colour, a mean over seeds with its band, the axes around it.

A figure is a plotly figure as plain data. The page's script adds what depends on the theme.
"""

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from study.judge.arms import ACTIVATION, KNOWN, Arm
from study.judge.effects import Row

Figure = dict[str, Any]

# Okabe and Ito's colours (2008), each shifted for contrast with its ground; gelu, the usual reference, is the neutral.
PALETTE = {
    "light": ("#cf5200", "#0072b2", "#24292f", "#b4518a", "#00875f", "#3f9fd8", "#c48400", "#7d7400"),
    "dark": ("#ff8a4c", "#4ba6e8", "#f0f2f4", "#e59ac6", "#2cc79b", "#8fd3ff", "#f2b632", "#e6dc5a"),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
FEW = 8  # up to so many arms, lines are bold and the training loss is shown from the start
POINTS = 20_000  # in all curves of a figure together, so that the largest study still opens at once
CURVE = 1000  # points of a curve: a screen has no more pixels
TOKENS = "training tokens"  # the title of an x axis


@dataclass(frozen=True)
class Style:
    """How an arm is drawn wherever it appears; `color` is an index into `PALETTE`."""

    color: int
    dash: str
    symbol: str


@dataclass(frozen=True)
class Point:
    """A point of a line that stands for several seeds: the mean, the lowest and the highest of `n` values at x."""

    x: float
    y: float
    low: float
    high: float
    n: int


def styles(arms: Sequence[Arm]) -> dict[str, Style]:
    """Return the style of each arm by its label.

    Colour stands for the activation, dashes for what else varies and for the second round of colours. The five best
    known activations have the same colour on every page. If all arms have one activation, colour stands for the rest.
    """
    # What tells arms of one activation apart.
    variants = {arm.label: " · ".join(part for key, part in arm.parts.items() if key != ACTIVATION) for arm in arms}
    one_activation = len(arms) > 1 and len({arm.activation for arm in arms}) == 1
    colored = variants if one_activation else {arm.label: arm.activation for arm in arms}
    colors = {} if one_activation else {name: i for i, name in enumerate(KNOWN) if name in colored.values()}
    # The others take, in order, the colours that the known ones of this page leave.
    free = (i for i in itertools.count() if i not in set(colors.values()))
    for name in colored.values():
        if name not in colors:
            colors[name] = next(free)
    order = list(dict.fromkeys(variants.values()))
    looks = {}
    for label, name in colored.items():
        rounds, color = divmod(colors[name], len(SYMBOLS))
        dash = rounds if one_activation else rounds + order.index(variants[label])
        looks[label] = Style(color, DASHES[dash % len(DASHES)], SYMBOLS[color])
    return looks


def mean_line(curves: Iterable[Sequence[tuple[float, float]]]) -> list[Point]:
    """Return the mean of several curves, at each x that all of them have."""
    return [Point(x, fmean(ys), min(ys), max(ys), len(ys)) for x, ys in common(curves).items()]


def common(curves: Iterable[Sequence[tuple[float, float]]]) -> dict[float, list[float]]:
    """Return the values of several curves at each x that all of them have."""
    tables = [dict(curve) for curve in curves]
    values = {}
    for x in tables[0] if tables else ():
        if all(x in table for table in tables):
            values[x] = [table[x] for table in tables]
    return values


def thin(points: Sequence[Any], limit: int = CURVE) -> list[Any]:
    """Keep at most `limit` points at even distances, the first and the last among them."""
    if len(points) <= limit:
        return [*points]
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def figure(traces: list[Figure], across: str, up: str, window: list[float] | None = None, ends: bool = True) -> Figure:
    """Return a figure of these traces; without traces it is empty, and the page leaves it out.

    `window` is the range of the y axis that is shown first. With `ends`, curves are named in the right margin.
    """
    if not traces:
        return {}
    longest = max(len(end_name(trace["meta"]["arm"])) for trace in traces)
    axis = {"showline": False, "zeroline": False, "ticks": "", "automargin": False}
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 62, "r": 24 + 7 * longest if ends else 24, "t": 12, "b": 48},
        "xaxis": axis | {"title": {"text": across}, "tickformat": "~s", "showgrid": False},
        "yaxis": axis | {"title": {"text": up}},
    }
    if window:
        layout["yaxis"]["range"] = window
    if ends:
        # Without a range plotly would leave room before the first token. A band ends where it starts, at the left.
        last = max(trace["x"][-1] for trace in traces if trace["meta"]["kind"] != "band")
        layout["xaxis"]["range"] = [0, 1.015 * last or 1]
    if across == TOKENS and len({trace["meta"]["arm"] for trace in traces}) <= FEW:
        # One popup names all curves at these tokens. Of many curves it would cover the figure, so each has its own.
        layout["hovermode"] = "x unified"
        layout["xaxis"] |= {"hoverformat": ",", "unifiedhovertitle": {"text": "%{x:,} tokens"}}
    return {"data": traces, "layout": layout}


def log_axis(values: Iterable[float], texts: str, room: float) -> Figure:
    """Return the changes that make an x axis logarithmic with a tick at each value; `room` is left at its right end."""
    values = sorted(values)
    # Plotly takes the range of a logarithmic axis in powers of ten.
    ticks = {format(value, texts): value for value in values}  # values that read alike share a tick
    return {
        "type": "log",
        "tickvals": list(ticks.values()),
        "ticktext": list(ticks),
        "range": [math.log10(values[0]) - 0.06, math.log10(values[-1]) + room],
    }


def trace(name: str, style: Style, kind: str, mode: str, x: Iterable[float], y: Iterable[float], **look: Any) -> Figure:
    """Return a trace. `meta` is for the page's script, which hides it with its arm and colours it by theme.

    `kind` says what it shows; the script names the ends of some kinds and smooths another.
    """
    meta = {"arm": name, "kind": kind, "color": style.color, "end": escaped(end_name(name)), "label": escaped(name)}
    return {
        "type": "scatter",
        "mode": mode,
        "name": escaped(name),
        "x": list(x),
        "y": [round(value, 5) for value in y],
        "meta": meta,
        **look,
    }


def lines(rows: Sequence[Row], kind: str, curves: Sequence[Sequence[Point]], hover: str) -> list[Figure]:
    """Return a line for each row that has points, and below it a band if it has several seeds."""
    looks = styles([row.arm for row in rows])
    drawn = [(row.arm.label, curve) for row, curve in zip(rows, curves, strict=True) if curve]
    # The more curves a figure has, the fewer points each of them gets.
    limit = min(CURVE, max(100, POINTS // max(1, len(drawn))))
    many = len(drawn) > FEW
    traces = []
    for label, curve in drawn:
        points, style = thin(curve, limit), looks[label]
        xs, ys = [point.x for point in points], [point.y for point in points]
        if kind == "training":  # a faint line in the background of the validation loss
            line = {"width": 1, "dash": style.dash}
            traces.append(trace(label, style, kind, "lines", xs, ys, hoverinfo="skip", line=line, opacity=0.3))
            continue
        text = hover
        seeds = points[0].n
        if seeds > 1 and kind != "rate":
            # A band is one closed line: along the highest values, and back along the lowest.
            outline = [*(point.high for point in points), *(point.low for point in reversed(points))]
            band = {"fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
            traces.append(trace(label, style, "band", "lines", [*xs, *reversed(xs)], outline, **band))
            text += f", mean of {seeds} seeds, %{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}"
        traces.append(
            trace(
                label, style, kind, "lines+markers", xs, ys,
                hovertemplate=popup(text),
                customdata=[[round(p.low, 5), round(p.high, 5), _perplexity(p.y)] for p in points],
                line={"width": 1.4 if many else 2.25, "dash": style.dash},
                marker={"symbol": style.symbol, "size": 4 if many else 7, "maxdisplayed": 24},
            )
        )  # fmt: skip
    return traces


def popup(text: str) -> str:
    """Return what hovering shows behind the arm's name."""
    return f"<b>%{{meta.label}}</b> {text}<extra></extra>"


def escaped(name: str) -> str:
    """Escape what plotly would read as a tag."""
    return html.escape(name, quote=False)


def end_name(name: str, limit: int = 24) -> str:
    """Shorten a name to what fits beside the end of its curve: settings by their values alone, then cut."""
    if len(name) > limit:
        first, *settings = name.split(" · ")
        name = " · ".join([first, *(setting.rpartition("=")[2] for setting in settings)])
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _perplexity(loss: float) -> float | None:
    return round(math.exp(loss), 3) if loss < 100 else None
