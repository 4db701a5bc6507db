"""The report: one HTML page for a set of runs, which opens from a file and asks nothing of the network.

The page is a list of sections, each of a kind that the template knows how to lay out. A new section is a line in
`sections`.
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
from study.report.drawing import FEW, PALETTE, Style, styles
from study.report.figures import depth_figure, difference_figure, final_figure, heat_maps, loss_figure, rate_figure
from study.report.sentences import headline, notes, scope
from study.report.table import cost_columns, course_columns, main_columns, page_table

FINAL_TEXT = "Below zero is better. Shaded: the margin, ±{0:g} nats per token. Smaller differences do not matter."
DOTS_TEXT = "Bars are 95 % t intervals of the mean over paired seeds. Faint dots are single seeds."
LOSS_TEXT = "Validation loss with markers; the training loss of single batches as faint lines. Lower is better."
SEEDS_TEXT = "Lines are means over seeds; bands reach from the lowest seed to the highest."
WINDOW_TEXT = "The first fall is out of view: select “from the start” to see it."
DIFFERENCE_TEXT = "Validation loss minus the reference’s at the same seed and tokens. Shaded: the margin, ±{0:g}."
TABLE_TEXT = "Losses in nats per token on the whole validation set, after the last step. Select a heading to sort."
NOISE_TEXT = (
    "“Text noise” is half the 95 % interval of the difference over other validation text, with the same trained "
    "networks (block bootstrap). It does not cover other seeds, and no verdict uses it."
)
COURSE_TEXT = (
    "Differences to {0} in nats per token. A change below zero means that the arm gains on {0}. “To 50 %”: tokens to "
    "the loss that {0} has at half its budget, as a multiple of {0}’s own."
)
MARGIN_TEXT = "±: half the 95 % interval."
DEPTH_TEXT = (
    "Gradient of the loss at the input of each block, relative to the last block, after the last step. A line that "
    "rises to the right is a gradient that shrinks on its way back. Runs with a gradient of 0 are left out."
)
PROBES_TEXT = "Each measurement by block and training step, the mean over seeds. Steps are log-spaced."
RATE_TEXT = (
    "Final validation loss of each arm at the rates that it was tuned on, or bracketed by. A ring marks its best."
)
COST_TEXT = "Means over the runs of an arm."
VERDICT_TEXT = (
    "Worse and better: the interval excludes 0, after Holm, and the difference is at least the margin of {0:g}. Equal: "
    "the whole interval lies within the margin. “Seeds to decide” is a plan: so many would probably decide, at this "
    "mean and spread. “Can find” is the smallest difference that these seeds would probably find (80 %)."
)
BRACKET_TEXT = (
    "Each seed trained at {0} learning rates. An arm’s loss is the lowest point of the parabola through their means. "
    "The interval is a jackknife over seeds, so that it covers the choice of the rate. Curves and samples are of the "
    "middle rate."
)
UNBRACKETED_TEXT = "The intervals leave out the luck of the learning rate: no arm trained at several rates."
CLIPPED_TEXT = "“Clipped” is the share of recorded steps whose gradient was larger than the limit."
SAMPLES_TEXT = "What one trained network of each arm writes from the same start: an impression, not evidence."
PROTOCOL_TEXT = "Where the runs differ, then what they share."


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
    """Write a page of sections and return its path. `legend` holds the arms that a reader can show and hide."""
    # Late imports, so that a folder without runs is refused at once.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file, such as {path / 'report.html'}.")
    engine = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # StrictUndefined and autoescape: a misspelt name in the template is an error, and a run's name is never HTML.
    engine.filters["value"] = _text
    engine.filters["typeset"] = _typeset
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader who has the page open never loads half of it.
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def sections(study: Study, rows: Sequence[Row], commands: str) -> list[Section]:
    """Return the sections in the order of reading, without those that have nothing to show.

    `commands` train the runs again.
    """
    loss, reference = loss_figure(rows), rows[0].reference
    windowed = bool(loss) and "range" in loss["layout"]["yaxis"]
    several = any(row.arm.seeds > 1 for row in rows)
    noise = any(row.noise for row in rows)
    clipped = any(row.arm.clipped is not None for row in rows)
    tuned, margin = bool(study.tuning), rows[0].margin

    texts = {
        "final": _texts(FINAL_TEXT.format(margin), several and DOTS_TEXT),
        "results": _texts(
            TABLE_TEXT, several and VERDICT_TEXT.format(margin), several and _bracket_text(rows), noise and NOISE_TEXT
        ),
        "loss": _texts(LOSS_TEXT, several and SEEDS_TEXT, windowed and WINDOW_TEXT),
        "difference": _texts(DIFFERENCE_TEXT.format(margin), several and SEEDS_TEXT),
        "course": _texts(COURSE_TEXT.format(reference), several and MARGIN_TEXT),
        "depth": DEPTH_TEXT,
        "probes": PROBES_TEXT,
        "rates": _texts(RATE_TEXT, tuned and _tuning_text(study)),
        "cost": _texts(COST_TEXT, clipped and CLIPPED_TEXT),
        "samples": SAMPLES_TEXT,
        "protocol": PROTOCOL_TEXT,
    }
    plans = "\n".join(tomli_w.dumps(plan) for plan in study.plans.values()).strip()
    # The verdict comes first, then how it came about, then what is needed to judge and repeat it.
    every = [
        ("final", f"Final loss against {reference}", "figure", final_figure(rows)),
        ("results", "Results", "table", page_table(rows, main_columns(rows), notes(rows, study))),
        ("loss", "Loss", "figure", loss),
        ("difference", f"Difference to {reference}", "figure", difference_figure(rows)),
        ("course", "Early and late", "table", page_table(rows, course_columns(rows))),
        ("depth", "Gradient against depth", "figure", depth_figure(rows)),
        ("probes", "Inside the network", "heat", heat_maps(rows)),
        ("rates", "Learning rates", "figure", rate_figure(rows)),
        ("cost", "Cost", "table", page_table(rows, cost_columns(rows))),
        ("samples", "Samples", "samples", _samples(rows)),
        ("protocol", "Protocol", "settings", _protocol(study, rows)),
        ("environment", "Environment", "settings", _environment([*study.runs, *study.tuning])),
        ("config", "Config", "text", plans),
        ("reproduce", "Reproduce", "text", commands),
    ]
    return [Section(*part, text=texts.get(part[0], "")) for part in every if part[3]]


def _texts(*texts: str | bool) -> str:
    """Join the texts that are not False."""
    return " ".join(text for text in texts if isinstance(text, str))


def _bracket_text(rows: Sequence[Row]) -> str:
    """Return what the intervals cover."""
    counts = [len(row.arm.bracket) for row in rows if row.arm.bracket]
    return BRACKET_TEXT.format(counts[0]) if counts else UNBRACKETED_TEXT


def _tuning_text(study: Study) -> str:
    """Return how the tuning runs differ from those that count, and which did not finish."""
    budgets = " or ".join(f"{budget:,}" for budget in sorted({run.budget for run in study.tuning}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.tuning})))
    failed = ", ".join(run.name for run in study.tuning if run.status != "finished")
    text = f"They train on {budgets} tokens with seeds {seeds}. Losses far above the best are out of view."
    return _texts(text, bool(failed) and f"Not finished, so that their rates have no loss: {failed}.")


def _samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the text of each arm's first finished run, split into prompt and continuation."""
    samples = []
    for row in rows:
        finished = [run.summary for run in row.arm.runs if run.summary and run.status == "finished"]
        summary = finished[0] if finished else {}
        prompt, text = summary.get("sample/prompt", ""), summary.get("sample/text", "")
        if text:
            samples.append({"arm": row.arm.label, "prompt": prompt, "text": text.removeprefix(prompt)})
    return samples


def _protocol(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings that all runs share, by section, and the values of those that vary, tuning apart."""
    runs = [run for row in rows for run in row.arm.runs]  # in the order of the table
    differ = varying(runs)
    shared: dict[str, dict[str, Any]] = {}
    for key, value in runs[0].settings.items():
        section, field = key.split(".", 1)
        if key not in differ:
            shared.setdefault(section, {})[field] = value
    varies = {key: _distinct(run.settings.get(key) for run in runs) for key in differ}
    if study.tuning:
        varies["tuning learning rates"] = _distinct(sorted(run.lr for run in study.tuning))
        varies["tuning seeds"] = _distinct(sorted(run.seed for run in study.tuning))
        varies["tuning tokens"] = _distinct(sorted(run.budget for run in study.tuning))
    return {"shared": shared, "varies": varies}


def _environment(runs: Sequence[Run]) -> dict[str, Any]:
    """Return where the finished runs were trained: what all share, and the values of what differs."""
    environments = [run.summary.get("environment", {}) for run in runs if run.summary]
    keys = dict.fromkeys(key for environment in environments for key in environment)
    values = {key: _distinct(environment.get(key) for environment in environments) for key in keys}
    shared = {key: texts[0] for key, texts in values.items() if len(texts) == 1}
    varies = {key: texts for key, texts in values.items() if len(texts) > 1}
    return {"shared": {"": shared}, "varies": varies} if environments else {}


def _distinct(values: Any) -> list[str]:
    """Return the texts of some values, each once."""
    return list(dict.fromkeys(map(_text, values)))


def _text(value: Any) -> str:
    """Write a setting: thousands separated, floats short, booleans as in TOML, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _typeset(text: str) -> str:
    """Give numbers a minus sign, and keep an effect and its margin on one line."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text).replace(" ± ", "\u00a0±\u00a0")


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:] + "."
