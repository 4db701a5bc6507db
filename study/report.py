"""The report: one HTML page for a set of runs, which opens from a file and asks nothing of the network.

The page is a list of sections, each of a kind that the template knows how to lay out; a figure is a function from the
table's rows to a plotly figure in the form of a dict. A new section is a function and a line in `sections`.
"""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.results import KNOWN, Row, Run, columns, headline, notes, partner, table, varying

Figure = dict[str, Any]

# Okabe and Ito's colours (2008), each shifted for contrast with its ground; gelu, the usual reference, is the neutral.
PALETTE = {
    "light": ("#cf5200", "#0072b2", "#24292f", "#b4518a", "#00875f", "#3f9fd8", "#c48400", "#7d7400"),
    "dark": ("#ff8a4c", "#4ba6e8", "#f0f2f4", "#e59ac6", "#2cc79b", "#8fd3ff", "#f2b632", "#e6dc5a"),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
FEW = 8  # up to so many runs their lines are bold, and training loss is shown from the start
POINTS = 1000  # a curve needs no more points than a screen has pixels


@dataclass(frozen=True)
class Style:
    """How an activation is drawn wherever it appears; `color` is an index into `PALETTE`."""

    color: int
    dash: str
    symbol: str


@dataclass(frozen=True)
class Section:
    """A part of the page. The template lays the content out by kind: figure, table, samples, settings or command."""

    id: str
    title: str
    kind: str
    content: Any
    text: str = ""


def write_report(
    runs: Sequence[Run], path: str | Path, title: str = "actgpt", command: str = "", reference: str = "gelu"
) -> Path:
    """Write the page about these runs to `path`, replacing a former one only when it is complete; return the path.

    `command` is what reproduces the runs; losses are compared with the `reference` activation's.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = FileSystemLoader(Path(__file__).parent)
    engine = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["value"] = _value
    rows = table(runs, reference)
    finding, scope = headline(rows)
    parts = sections(rows, command)
    page = engine.get_template("report.html.j2").render(
        title=title,
        finding=_sentence(finding),
        scope=_sentence(scope),
        facts=_facts(rows),
        sections=parts,
        figures={part.id: part.content for part in parts if part.kind == "figure"},
        styles=styles(rows),
        few=len(rows) <= FEW,
        drawn=dict.fromkeys(row.run.activation for row in rows),
        palette=PALETTE,
        plotly=Markup(get_plotlyjs()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(page, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sections(rows: Sequence[Row], command: str) -> list[Section]:
    """Return the page's sections in the order of reading; what there is nothing to say about is left out."""
    runs, loss = [row.run for row in rows], loss_curves(rows)
    windowed = bool(loss) and "range" in loss["layout"]["yaxis"]
    results = {"rows": rows, "columns": columns(rows), "notes": notes(rows)}
    every = [
        Section("loss", "Loss", "figure", loss, LOSS_TEXT + WINDOW_TEXT * windowed),
        Section("difference", f"Difference to {rows[0].reference}", "figure", difference_curves(rows), DIFFERENCE_TEXT),
        Section("results", "Results", "table", results, TABLE_TEXT),
        Section("samples", "Samples", "samples", samples(rows), SAMPLES_TEXT),
        Section("protocol", "Protocol", "settings", protocol(runs), PROTOCOL_TEXT),
        Section("environment", "Environment", "settings", environment(runs)),
        Section("reproduce", "Reproduce", "command", command),
    ]
    return [section for section in every if section.content]


LOSS_TEXT = "Validation loss with markers, the loss of single training batches as faint lines; lower is better."
WINDOW_TEXT = " The first fall is out of view: select “from the start” to see it."
DIFFERENCE_TEXT = "Validation loss minus the reference run’s at the same number of tokens. Below zero is better."
TABLE_TEXT = "Losses in nats per token on the whole validation set, after the last step. Select a heading to sort."
SAMPLES_TEXT = "What each trained network writes from the same start: an impression, not evidence."
PROTOCOL_TEXT = "What the runs share and, beside the activation, where they differ."


def styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Give every activation its colour, and dashes once the colours are used up."""
    count, names = len(SYMBOLS), dict.fromkeys([*KNOWN, *(row.run.activation for row in rows)])
    return {n: Style(i % count, DASHES[i // count % len(DASHES)], SYMBOLS[i % count]) for i, n in enumerate(names)}


def loss_curves(rows: Sequence[Row]) -> Figure:
    """Draw loss against tokens: validation as lines with markers, training as fainter lines; empty without records."""
    hover = "%{x:,} tokens<br>{kind} loss %{y:.3f}<br>perplexity %{customdata:,.1f}"
    traces = []
    for kind, metric in (("training", "train/loss"), ("validation", "val/loss")):
        drawn = _traces(rows, kind, [row.run.curve(metric) for row in rows], hover.replace("{kind}", kind))
        for trace in drawn:
            trace["customdata"] = [round(math.exp(y), 3) if y < 100 else None for y in trace["y"]]
        traces += drawn
    return _figure(traces, "loss, nats per token", _window(traces)) if traces else {}


def difference_curves(rows: Sequence[Row]) -> Figure:
    """Draw each validation loss minus its reference run's at the same number of tokens; empty without a pair."""
    runs = [row.run for row in rows]
    curves = []
    for row in rows:
        other, _ = partner(row.run, runs, row.reference)
        level = dict(other.curve("val/loss")) if other else {}
        curves.append([(x, y - level[x]) for x, y in row.run.curve("val/loss") if x in level])
    if not any(curve for row, curve in zip(rows, curves, strict=True) if row.run.activation != row.reference):
        return {}
    hover = "%{x:,} tokens<br>%{y:+.3f} nats per token against %{meta.reference}"
    return _figure(_traces(rows, "difference", curves, hover), "difference, nats per token")


def samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each finished run's text, split into prompt and continuation."""
    found = []
    for row in rows:
        prompt, text = ((row.run.summary or {}).get(f"sample/{part}", "") for part in ("prompt", "text"))
        if text:
            found.append({"row": row, "prompt": prompt, "text": text.removeprefix(prompt)})
    return found


def protocol(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the settings that all runs share, by section, and the values of those that vary."""
    differ = varying(runs)
    shared: dict[str, dict[str, Any]] = {}
    for key, value in runs[0].settings.items():
        section, field = key.split(".", 1)
        if key not in differ:
            shared.setdefault(section, {})[field] = value
    values = {key: dict.fromkeys(_value(run.settings.get(key)) for run in runs) for key in differ}
    activations = dict.fromkeys(run.activation for run in runs)
    return {"shared": shared, "varies": {"activation": [*activations]} | {key: [*seen] for key, seen in values.items()}}


def environment(runs: Sequence[Run]) -> dict[str, Any]:
    """Return where the runs were trained: what all finished ones share, and what differs with the values seen."""
    found = [run.summary.get("environment", {}) for run in runs if run.summary]
    seen = {key: [*dict.fromkeys(_value(e.get(key)) for e in found)] for e in found for key in e}
    same = {key: values[0] for key, values in seen.items() if len(values) == 1}
    return {"shared": {"": same}, "varies": {k: v for k, v in seen.items() if len(v) > 1}} if found else {}


def thin(points: Sequence[tuple[int, float]], limit: int = POINTS) -> list[tuple[int, float]]:
    """Keep at most `limit` points at even distances, the first and the last among them."""
    if len(points) <= limit:
        return [*points]
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def _traces(rows: Sequence[Row], kind: str, curves: Sequence[Sequence[tuple[int, float]]], hover: str) -> list[Figure]:
    """Draw one line per row that has points. `meta` tells the page's script whose line it is, and of what kind."""
    style, faint, many, traces = styles(rows), kind == "training", len(rows) > FEW, []
    for row, curve in zip(rows, curves, strict=True):
        if not curve:
            continue
        look, points = style[row.run.activation], thin(curve)
        color = PALETTE["light"][look.color]
        # plotly reads a few tags in its labels: escaped, a name stays what it is.
        named = {"end": _short(row.run.activation), "label": row.label, "reference": row.reference}
        names = {role: html.escape(name, quote=False) for role, name in named.items()}
        trace = {
            "type": "scatter",
            "mode": "lines" if faint else "lines+markers",
            "x": [x for x, _ in points],
            "y": [round(y, 5) for _, y in points],
            "name": names["label"],
            "meta": {"activation": row.run.activation, "kind": kind, "color": look.color} | names,
            "hovertemplate": f"<b>%{{meta.label}}</b><br>{hover}<extra></extra>",
            "line": {"color": color, "width": 1 if faint else 1.4 if many else 2.25, "dash": look.dash},
            "opacity": 0.3 if faint else 1,
        }
        if not faint:
            trace["marker"] = {"color": color, "symbol": look.symbol, "size": 4 if many else 7, "maxdisplayed": 24}
        traces.append(trace)
    return traces


def _window(traces: Sequence[Figure]) -> list[float] | None:
    """Return the losses to show first: the fall from the initial loss would flatten all that the curves differ in."""
    end = max(trace["x"][-1] for trace in traces)
    seen = [(t["meta"]["kind"], y) for t in traces for x, y in zip(t["x"], t["y"], strict=True) if x >= end / 20]
    validation = [y for kind, y in seen if kind == "validation"]
    if len(validation) < 2:
        return None
    low, high = min(y for _, y in seen), max(validation)
    return [low - 0.03 * (high - low), high + 0.05 * (high - low)]


def _figure(traces: list[Figure], title: str, window: list[float] | None = None) -> Figure:
    longest = max(len(_short(trace["meta"]["activation"])) for trace in traces)
    axis = {"showline": False, "zeroline": False, "ticks": "", "automargin": False}
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 62, "r": 24 + 7 * longest, "t": 12, "b": 48},  # the curves' names stand in the right margin
        "xaxis": axis | {"title": {"text": "training tokens"}, "tickformat": "~s", "showgrid": False},
        "yaxis": axis | {"title": {"text": title}, "zeroline": "difference" in title},
    }
    if window:
        layout["yaxis"]["range"] = window
    layout["xaxis"]["range"] = [0, 1.015 * max(trace["x"][-1] for trace in traces)]
    return {"data": traces, "layout": layout}


def _facts(rows: Sequence[Row]) -> list[str]:
    """Return the size of the experiment in a few words each."""
    runs = [row.run for row in rows]
    sizes = sorted({size for run in runs if (size := run.final("params/total"))})
    budgets = sorted({run.budget for run in runs})
    facts = [f"{len(runs)} run{'s'[: len(runs) > 1]}", " or ".join(f"{b:,}" for b in budgets) + " training tokens each"]
    if sizes:
        spread = f", sizes within {100 * (sizes[-1] / sizes[0] - 1):.2g} %" if len(sizes) > 1 else ""
        facts.append(f"{sizes[0]:,.0f} parameters{spread}")
    data = {
        " · ".join(str(run.settings[k]) for k in ("data.corpus", "data.tokenizer") if k in run.settings) for run in runs
    }
    return facts + sorted(data - {""})


def _value(value: Any) -> str:
    """Write a setting: thousands separated, floats short, booleans as in TOML, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:] + "."
