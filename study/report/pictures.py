"""The report's figures as pictures: what `figures` returns as plotly dicts, drawn by matplotlib.

A pixel of the page is two of the picture. A new type of trace is a function and a line in `DRAW`.
"""

import html
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from files import replacing
from study.report.drawing import DASHES, FEW, PALETTE, SYMBOLS, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE = "#1b1f24", "#5c6670", "#dfe3e7"
COLORS = PALETTE["light"]
DASH = dict(zip(DASHES, ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 2, 1, 2)), (0, (7, 2))), strict=True))
MARKER = dict(zip(SYMBOLS, "osD^vPX*", strict=True)) | {"circle-open": "o"}
WIDTH, HEIGHT, GAP = 800, 440, 18  # pixels of the page: the picture, and a line of text
PIXEL = 0.72  # points
NO_NAME = "_nolegend_"  # matplotlib's own, as of an interval's caps
LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12 * PIXEL,
    "text.color": INK,
    "text.parse_math": False,  # a name stays what it is
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 14 * PIXEL,
    "axes.titlepad": 12 * PIXEL,
    "grid.color": RULE,
    "grid.linewidth": PIXEL,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def write_picture(figure: Figure, path: Path, title: str) -> None:
    """Write a figure as a PNG in the light theme; it is as high as the names of its curves need."""
    import matplotlib  # half a second
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = figure["layout"]
    arms = {trace["meta"]["arm"] for trace in figure["data"] if "meta" in trace}
    traces = [trace for trace in figure["data"] if _kind(trace) != "training" or len(arms) <= FEW]
    low, high = layout["yaxis"].get("range", (-math.inf, math.inf))
    traces = [t for t in traces if t.get("cliponaxis", True) or low <= t["y"][0] <= high]  # no ring beyond the axes
    height = 30 + max(figure.get("height", HEIGHT), 90 + GAP * len(arms))
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in a script that the font lacks
        canvas = Canvas(
            figsize=(WIDTH / 100, height / 100), dpi=200, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
        )
        axes = canvas.add_subplot()
        for trace in traces:
            DRAW[trace["type"]](axes, trace)
        named = {line: str(name) for line in axes.lines if (name := line.get_label()) != NO_NAME}
        _dress(axes, layout)
        axes.set_title(title)
        if ends := [trace for trace in traces if _kind(trace) in ("validation", "difference")]:
            canvas.draw_without_rendering()  # from here on the axes have their height
            _name(axes, ends)
        elif named and "ticktext" not in layout["yaxis"]:
            canvas.legend([*named], [*named.values()], loc="outside right upper")
        with replacing(path) as temporary:
            canvas.savefig(temporary)


def _kind(trace: Figure) -> str:
    return trace.get("meta", {}).get("kind", "")


def _scatter(axes: "Axes", trace: Figure) -> None:
    """Draw a line, its markers, both, or the area that it encloses."""
    color = COLORS[trace["meta"]["color"]]
    line, marker, mode = trace.get("line", {}), trace.get("marker", {}), trace["mode"]
    if trace.get("fill") == "toself":
        axes.fill(trace["x"], trace["y"], color=color, alpha=0.16, linewidth=0)
        return
    empty = marker.get("symbol", "").endswith("-open")
    look: dict[str, Any] = {
        "color": color,
        "alpha": trace.get("opacity", 1),
        "linestyle": DASH[line.get("dash", "solid")] if "lines" in mode else "none",
        "linewidth": PIXEL * line.get("width", 2),
        "drawstyle": "steps-mid" if line.get("shape") == "hvh" else "default",
        "label": NO_NAME if empty else html.unescape(trace["name"]),  # instead of "" matplotlib takes a name of its own
    }
    if "markers" in mode:
        look |= {"marker": MARKER[marker["symbol"]], "markersize": PIXEL * marker["size"]}
        look |= {"markeredgewidth": PIXEL * marker.get("line", {}).get("width", 0)}
        look |= {"markerfacecolor": "none" if empty else color}
        look |= {"markevery": math.ceil(len(trace["x"]) / marker.get("maxdisplayed", math.inf)) or 1}
    axes.plot(trace["x"], trace["y"], **look, clip_on=trace.get("cliponaxis", True))
    for name, side in (("error_x", "xerr"), ("error_y", "yerr")):
        if error := trace.get(name):
            form = {"fmt": "none", "elinewidth": PIXEL * error["thickness"], "capsize": PIXEL * error["width"]}
            axes.errorbar(trace["x"], trace["y"], **{side: error["array"]}, **form, ecolor=color)


DRAW = {"scatter": _scatter}


def _dress(axes: "Axes", layout: dict[str, Any]) -> None:
    """Give the axes what the layout says: titles, scales, ranges, ticks, grid, shaded areas."""
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    forms = {"~s": EngFormatter(sep=""), "+.3~f": StrMethodFormatter("{x:+.3g}")}
    for name, axis, zero in (("x", axes.xaxis, axes.axvline), ("y", axes.yaxis, axes.axhline)):
        asked = layout[f"{name}axis"]
        log = asked.get("type") == "log"
        axes.set(**{f"{name}label": html.unescape(asked["title"]["text"]), f"{name}scale": "log" if log else "linear"})
        if "range" in asked:
            axes.set(**{f"{name}lim": [10**end if log else end for end in asked["range"]]})
        if "tickvals" in asked:
            axis.set_ticks(asked["tickvals"], [html.unescape(text) for text in asked["ticktext"]])
            axis.set_ticks([], minor=True)
        elif asked.get("tickformat") in forms:
            axis.set_major_formatter(forms[asked["tickformat"]])
        elif log:
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(asked.get("showgrid", True))
        if asked["zeroline"]:
            zero(0, color=MUTED, linewidth=PIXEL, zorder=1)
    for shape in layout.get("shapes", ()):
        look = {"color": MUTED, "alpha": 0.16, "linewidth": 0, "zorder": 0}
        if shape.get("xref") == "paper":
            axes.axhspan(shape["y0"], shape["y1"], **look)
        else:
            axes.axvspan(shape["x0"], shape["x1"], **look)


def _name(axes: "Axes", traces: Sequence[Figure]) -> None:
    """Name each curve at its end, if that is in view; names that would collide are pushed apart."""
    pixel = axes.transData.transform
    frame = axes.get_window_extent()
    low, high = frame.y0 / 2, frame.y1 / 2
    ends = sorted(((pixel((t["x"][-1], t["y"][-1]))[1] / 2, t) for t in traces), key=lambda end: end[0])
    ends = [(y, trace) for y, trace in ends if low <= y <= high]
    many = len(ends) > FEW
    for (y, trace), place in zip(ends, apart([y for y, _ in ends], GAP, low, high), strict=True):
        color = COLORS[trace["meta"]["color"]]
        pointer = {"arrowstyle": "-", "color": color, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            html.unescape(trace["meta"]["end"]),
            (trace["x"][-1], trace["y"][-1]),
            (PIXEL * (26 if many else 12), PIXEL * (place - y)),
            textcoords="offset points",
            va="center_baseline",
            color=color,
            fontweight="bold",
            arrowprops=pointer if many else None,
        )


def apart(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Return rising places pushed apart to at least `gap`, as little as may be, within low and high if they fit."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(places))
    return np.clip(isotonic_regression(places - steps).x, low, high - steps[-1]) + steps if len(places) else steps
