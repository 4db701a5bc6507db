"""The report: one HTML page for a set of runs, which opens from a file and asks nothing of the network.

The page is a list of sections, each of a kind that the template knows how to lay out. A new section is a function and a
line in `sections`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from errors import UserError
from files import replacing
from study.judge.effects import Row
from study.judge.results import Run, Study, varying
from study.judge.statistics import SMALLEST
from study.report.drawing import FEW, PALETTE, Style, styles
from study.report.figures import depth_figure, difference_figure, final_figure, heat_maps, loss_figure, rate_figure
from study.report.pictures import write_picture
from study.report.table import Column, columns, cost_columns, course_columns, headline, notes, scope


@dataclass(frozen=True)
class Section:
    """A part of the page; the template lays out each kind: figure, heat, table, claim, samples, settings, text."""

    id: str
    title: str
    kind: str
    content: Any
    text: str = ""


def write_report(parts: Sequence[Section], rows: Sequence[Row], path: Path, title: str = "actgpt") -> Path:
    """Write the page about these rows to `path` and return it."""
    return write_page(path, title, headline(rows), scope(rows), parts, styles([row.arm for row in rows]))


def write_page(
    path: Path, title: str, finding: str, scope: str, parts: Sequence[Section], legend: dict[str, Style]
) -> Path:
    """Write a page of sections, and its figures as pictures beside it (`loss.png` and so on); return the page's path.

    `legend` holds the arms that its reader can show and hide, by label.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = FileSystemLoader(Path(__file__).parent)
    engine = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters |= {"value": _value, "typeset": _typeset}
    page = engine.get_template("page.html.j2").render(
        title=title,
        finding=_sentence(finding),
        scope=_sentence(scope),
        sections=parts,
        figures={part.id: part.content for part in parts if part.kind in ("figure", "heat")},
        styles=legend,
        few=len(legend) <= FEW,
        palette=PALETTE,
        plotly=Markup(get_plotlyjs()),
    )
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file, such as {path / 'report.html'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    for part in parts:
        if part.kind == "figure":
            write_picture(part.content, path.with_name(f"{part.id}.png"), part.title)
    return path


def sections(study: Study, rows: Sequence[Row], command: str) -> list[Section]:
    """Return the page's sections in the order of reading; what there is nothing to say about is left out.

    `command` is what reproduces the runs.
    """

    def table(shown: list[Column], remarks: Sequence[str] = ()) -> dict[str, Any]:
        return {"rows": rows, "columns": shown, "notes": remarks} if shown or remarks else {}

    loss, reference = loss_figure(rows), rows[0].reference
    windowed, seeds = bool(loss) and "range" in loss["layout"]["yaxis"], max(row.arm.seeds for row in rows)
    over_seeds = SEEDS_TEXT * (seeds > 1)
    noise = NOISE_TEXT * any(row.noise for row in rows)
    cost_text = COST_TEXT + SHARED_TEXT.format(reference) * bool(study.tuning)
    cost_text += CLIPPED_TEXT * any(row.arm.clipped is not None for row in rows)
    every = [
        Section(
            "final",
            f"Final loss against {reference}",
            "figure",
            final_figure(rows),
            FINAL_TEXT + DOTS_TEXT * (seeds > 1),
        ),
        Section("results", "Results", "table", table(columns(rows), notes(rows, study)), TABLE_TEXT + noise),
        Section("loss", "Loss", "figure", loss, LOSS_TEXT + over_seeds + WINDOW_TEXT * windowed),
        Section(
            "difference", f"Difference to {reference}", "figure", difference_figure(rows), DIFFERENCE_TEXT + over_seeds
        ),
        Section(
            "course",
            "Early and late",
            "table",
            table(course_columns(rows)),
            COURSE_TEXT.format(reference, MARGIN_TEXT * (seeds > 1)),
        ),
        Section("depth", "Gradient against depth", "figure", depth_figure(rows), DEPTH_TEXT),
        Section("probes", "Inside the network", "heat", heat_maps(rows), PROBES_TEXT),
        Section("rates", "Learning rates", "figure", rate_figure(rows), RATE_TEXT + tuning_text(study)),
        Section("cost", "Cost", "table", table(cost_columns(rows)), cost_text),
        Section("samples", "Samples", "samples", samples(rows), SAMPLES_TEXT),
        Section("protocol", "Protocol", "settings", protocol(study, rows), PROTOCOL_TEXT),
        Section("environment", "Environment", "settings", environment([*study.runs, *study.tuning])),
        Section("config", "Config", "text", "\n".join(map(tomli_w.dumps, study.plans.values())).strip()),
        Section("reproduce", "Reproduce", "text", command),
    ]
    return [section for section in every if section.content]


FINAL_TEXT = (
    f"Below zero is better. Shaded: differences within ±{SMALLEST:g} nats per token, 1 % of perplexity, do not matter."
)
DOTS_TEXT = " Bars are 95 % t intervals of the mean over paired seeds, faint dots the seeds themselves."
LOSS_TEXT = "Validation loss with markers, the loss of single training batches as faint lines; lower is better."
SEEDS_TEXT = " Lines are means over seeds; bands span the lowest and the highest."
WINDOW_TEXT = " The first fall is out of view: select “from the start” to see it."
DIFFERENCE_TEXT = f"Validation loss minus the reference’s of the same seed and tokens. Shaded: ±{SMALLEST:g}."
TABLE_TEXT = "Losses in nats per token on the whole validation set, after the last step. Select a heading to sort."
NOISE_TEXT = (
    " “Text noise” is half the 95 % interval of the difference over blocks of the validation text, the trained "
    "networks being as they are (block bootstrap). It says nothing of other seeds, and decides nothing."
)
COURSE_TEXT = (
    "Differences to {0} in nats per token{1}; a change below zero: the arm gains on {0}. "
    "“To 50 %”: tokens to the loss that {0} has at half its budget, as a multiple of its own."
)
MARGIN_TEXT = ", ± half the 95 % interval"
DEPTH_TEXT = (
    "Gradient of the loss with respect to the residual stream where it enters each block, relative to the last block, "
    "after the last step. A line that rises to the right is a gradient that shrinks on its way back; runs "
    "in which it is 0 in a block have no place here."
)
PROBES_TEXT = "Each measurement by block and training step, the mean over seeds. Steps are log-spaced."
RATE_TEXT = "Final validation loss of the tuning runs; rings mark the rate that each arm trains at."
COST_TEXT = "Means over an arm’s runs."
SHARED_TEXT = (
    " “Shared lr” is the difference to {0} of the tuning runs at its best rate there: what a comparison without tuning "
    "would have shown, at the tuning budget."
)
CLIPPED_TEXT = " “Clipped”: the share of the recorded steps whose gradient was larger than the limit."
SAMPLES_TEXT = "What one trained network of each arm writes from the same start: an impression, not evidence."
PROTOCOL_TEXT = "What the runs share, and where they differ."


def tuning_text(study: Study) -> str:
    """Say how the tuning runs differ from those that count, and which did not finish."""
    budgets = " or ".join(f"{budget:,}" for budget in sorted({run.budget for run in study.tuning}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.tuning})))
    failed = ", ".join(run.name for run in study.tuning if run.status != "finished")
    text = f" They train on {budgets} tokens with seeds {seeds}. Losses far above the best are out of view."
    return text + (f" Not finished, so that their rates have no loss: {failed}." if failed else "")


def samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the text of each arm's first finished run, split into prompt and continuation."""
    found = []
    for row in rows:
        first = next((run.summary for run in row.arm.runs if run.summary and run.status == "finished"), {})
        prompt, text = (first.get(f"sample/{part}", "") for part in ("prompt", "text"))
        if text:
            found.append({"row": row, "prompt": prompt, "text": text.removeprefix(prompt)})
    return found


def protocol(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings that all runs share, by section, and the values of those that vary, tuning apart."""
    settings = [run.settings for row in rows for run in row.arm.runs]
    differ = varying(study.runs)
    shared: dict[str, dict[str, Any]] = {}
    for key, value in settings[0].items():
        section, field = key.split(".", 1)
        if key not in differ:
            shared.setdefault(section, {})[field] = value
    varies = {key: [*dict.fromkeys(_value(s.get(key)) for s in settings)] for key in differ}
    tried = [(run.settings.get("train.lr"), run.seed, run.budget) for run in study.tuning]
    for name, values in zip(("learning rates", "seeds", "tokens"), zip(*tried, strict=True), strict=False):
        varies[f"tuning {name}"] = [_value(value) for value in sorted(set(values))]
    return {"shared": shared, "varies": varies}


def environment(runs: Sequence[Run]) -> dict[str, Any]:
    """Return where the runs were trained: what all finished ones share, and what differs with the values seen."""
    found = [run.summary.get("environment", {}) for run in runs if run.summary]
    seen = {key: [*dict.fromkeys(_value(e.get(key)) for e in found)] for e in found for key in e}
    same = {key: values[0] for key, values in seen.items() if len(values) == 1}
    return {"shared": {"": same}, "varies": {k: v for k, v in seen.items() if len(v) > 1}} if found else {}


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


def _typeset(text: str) -> str:
    """Give numbers a minus sign, and keep an effect and its margin on one line."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text).replace(" ± ", "\u00a0±\u00a0")


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:] + "."
