"""The report: one HTML page for a set of runs, which opens from a file and asks nothing of the network.

The page is a list of sections, each of a kind that the template knows how to lay out. A new section is a line in
`sections`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from errors import UserError
from files import replacing
from study.judge.effects import Row
from study.judge.results import RunResult, Study, varying
from study.report.drawing import FEW, PALETTE, Style, styles
from study.report.figures import depth_figure, difference_figure, final_figure, heat_maps, loss_figure, rate_figure
from study.report.sentences import headline, notes, scope, sentence
from study.report.table import (
    Cell,
    Table,
    TableRow,
    cost_columns,
    difference_columns,
    main_columns,
    page_table,
)

FINAL_TEXT = "Below zero is better. Shaded: the margin, ±{0:g} nats per token. Smaller differences do not matter."
DOTS_TEXT = "Bars are 95 % t intervals of the mean over paired seeds. Faint dots are single seeds."
LOSS_TEXT = "Lower is better. Faint lines are the training loss of single batches."
SEEDS_TEXT = "Lines are means over seeds; bands reach from the lowest seed to the highest."
FLOPS_TEXT = "FLOPs are those of training, as the table of costs has them for a token."
SECONDS_TEXT = (
    "Seconds are those of training steps alone, without scores, probes and checkpoints, as a mean over seeds. The runs "
    "of a study share a machine, so that a run alone needs fewer."
)
SCHEDULE_TEXT = (
    "Compare the ends of such curves: before its own end, an arm that costs more has the higher learning rate."
)
WINDOW_TEXT = "The first fall is out of view: select “from the start” to see it."
DIFFERENCE_TEXT = "Validation loss minus the reference’s at the same seed and tokens. Shaded: the margin, ±{0:g}."
TABLE_TEXT = "Losses in nats per token on the whole validation set, after the last step."
NOISE_TEXT = (
    "“Text noise” is half the 95 % interval of the difference over other validation text, with the same trained "
    "networks (block bootstrap). It does not cover other seeds, and no verdict uses it."
)
COURSE_TEXT = "How the differences to {0} come about over training, in nats per token."
READING_COURSE = (
    "“At 25 %”: at a quarter of the budget. “Change”: from there to the end; below zero, the arm gains on {0}. “To "
    "50 %”: tokens to the loss that {0} has at half its budget, as a multiple of {0}’s own."
)
SURE_TEXT = (
    "±: half the 95 % interval. “p (Holm)” is for a difference of 0. “Can find” is the smallest difference that so "
    "many seeds find with a probability of 80 %."
)
DEPTH_TEXT = (
    "Gradient of the loss at the input of each block, relative to the last block, after the last step. A line that "
    "rises to the right is a gradient that shrinks on its way back. Runs with a gradient of 0 are left out."
)
PROBES_TEXT = "By block and training step, the mean over seeds. All arms share one scale of colours."
RATE_TEXT = "Final validation loss of each arm at the learning rates that it was tuned on. A ring marks its best."
BRACKET_RATE_TEXT = (
    "Final validation loss at the learning rates that each seed trained at. A ring marks the arm’s best."
)
COST_TEXT = "Means over the runs of an arm."
SHARED_TEXT = "The runs of a study share a machine, so that tokens/s is not what a run alone would reach."
MFU_TEXT = (
    "“MFU”, model FLOPs utilisation, is the share of the GPUs’ peak in bf16 that a run uses. Runs that train as one "
    "stack share a GPU: their shares add up."
)
VERDICT_TEXT = (
    "Worse and better: the interval excludes 0, after Holm’s adjustment for {1} comparisons, and the difference is at "
    "least the margin of {0:g}. Equal: the whole interval lies within the margin."
)
NEEDED_TEXT = "“Seeds to decide” is a plan: so many would probably decide, at this mean and spread."
EDGE_TEXT = "“Edge”: the best learning rate is the lowest or highest that was tried. A better one may lie beyond."
BRACKET_TEXT = (
    "Each seed trained at {0} learning rates. An arm’s loss is the lowest point of the parabola through their means. "
    "The interval is a jackknife over seeds, so that it covers the choice of the rate. Curves and samples are of the "
    "middle rate."
)
UNBRACKETED_TEXT = "The intervals leave out the luck of the learning rate: no arm trained at several rates."
CLIPPED_TEXT = "“Clipped” is the share of recorded steps whose gradient was larger than the limit."
SAMPLES_TEXT = "What one trained network of each arm writes: an impression, not evidence."
PROTOCOL_TEXT = "Where the runs differ, then what they share."


@dataclass(frozen=True)
class Section:
    """A part of the page; the template lays out each kind: figure, heat, table, claim, samples, settings, text.

    `text` stands above the content, `reading` folded below it.
    """

    id: str
    title: str
    kind: str
    content: Any
    text: str = ""
    reading: str = ""


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
    engine.policies["json.dumps_kwargs"] = {"sort_keys": False}  # figures keep the order of their arms
    engine.filters["value"] = _text
    engine.filters["typeset"] = _typeset
    page = engine.get_template("page.html.j2").render(
        title=title,
        finding=sentence(finding),
        scope=sentence(scope),
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
    reference, margin = rows[0].reference, rows[0].margin
    loss, results = loss_figure(rows), page_table(rows, main_columns(rows), notes(rows, study), mark=True)
    difference, cost = page_table(rows, difference_columns(rows)), page_table(rows, cost_columns(rows))
    costs = loss["costs"] if loss else {}
    windowed = bool(loss) and "range" in loss["layout"]["yaxis"]
    several = any(row.arm.seeds > 1 for row in rows)

    def has(table: Table | None, title: str) -> bool:
        return table is not None and title in table.titles

    texts = {
        "final": FINAL_TEXT.format(margin),
        "results": TABLE_TEXT,
        "loss": _texts(LOSS_TEXT, windowed and WINDOW_TEXT),
        "difference": DIFFERENCE_TEXT.format(margin),
        "course": COURSE_TEXT.format(reference),
        "depth": DEPTH_TEXT,
        "probes": PROBES_TEXT,
        "rates": BRACKET_RATE_TEXT if any(row.arm.bracket for row in rows) else RATE_TEXT,
        "cost": COST_TEXT,
        "samples": SAMPLES_TEXT,
        "protocol": PROTOCOL_TEXT,
    }
    # What a reader needs once is folded, and of columns only those that are there are explained.
    readings = {
        "final": _texts(several and DOTS_TEXT),
        "results": _texts(
            has(results, "verdict") and VERDICT_TEXT.format(margin, sum(not math.isnan(row.p) for row in rows)),
            has(results, "seeds to decide") and NEEDED_TEXT,
            any(row.arm.edge for row in rows) and EDGE_TEXT,
            several and _bracket_text(rows),
        ),
        "loss": _texts(
            several and SEEDS_TEXT,
            "FLOPs" in costs and FLOPS_TEXT,
            "seconds" in costs and SECONDS_TEXT,
            bool(costs) and SCHEDULE_TEXT,
        ),
        "difference": _texts(several and SEEDS_TEXT),
        "course": _texts(
            READING_COURSE.format(reference),
            has(difference, "p (Holm)") and SURE_TEXT,
            has(difference, "text noise") and NOISE_TEXT,
        ),
        "rates": _texts(bool(study.tuning) and _tuning_text(study)),
        "cost": _texts(
            has(cost, "clipped") and CLIPPED_TEXT,
            has(cost, "tokens/s") and bool(study.plans) and SHARED_TEXT,
            has(cost, "MFU") and MFU_TEXT,
        ),
    }
    plans = "\n".join(tomli_w.dumps(plan) for plan in study.plans.values()).strip()
    # The verdict comes first, then how it came about, then what is needed to judge and repeat it.
    every = [
        ("final", f"Final loss against {reference}", "figure", final_figure(rows)),
        ("results", "Results", "table", results),
        ("studies", "Where the studies differ", "table", _study_table(study)),
        ("loss", "Loss", "figure", loss),
        ("difference", f"Difference to {reference}", "figure", difference_figure(rows)),
        ("course", "The difference in detail", "table", difference),
        ("rates", "Learning rates", "figure", rate_figure(rows)),
        ("cost", "Cost", "table", cost),
        ("samples", "Samples", "samples", _samples(rows)),
        ("depth", "Gradient against depth", "figure", depth_figure(rows)),
        ("probes", "Inside the network", "heat", heat_maps(rows)),
        ("protocol", "Protocol", "settings", _protocol(study, rows)),
        ("environment", "Environment", "settings", _environment([*study.runs, *study.tuning])),
        ("config", "Config", "text", plans),
        ("reproduce", "Reproduce", "text", commands),
    ]
    shown = [part for part in every if part[3]]
    return [Section(*part, text=texts.get(part[0], ""), reading=readings.get(part[0], "")) for part in shown]


def _texts(*texts: str | bool) -> str:
    """Join the texts that are not False."""
    return " ".join(text for text in texts if isinstance(text, str))


def _bracket_text(rows: Sequence[Row]) -> str:
    """Return what the intervals cover."""
    counts = [len(row.arm.losses_by_rate()) for row in rows if row.arm.bracket]
    return BRACKET_TEXT.format(counts[0]) if counts else UNBRACKETED_TEXT


def _tuning_text(study: Study) -> str:
    """Return how the tuning runs differ from those that count, and which did not finish."""
    budgets = " or ".join(f"{budget:,}" for budget in sorted({run.budget for run in study.tuning}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.tuning})))
    failed = ", ".join(run.name for run in study.tuning if run.status != "finished")
    text = f"The tuning runs: {budgets} tokens, seeds {seeds}. Losses far above the best are out of view."
    return _texts(text, bool(failed) and f"Not finished, so that their rates have no loss: {failed}.")


def _study_table(study: Study) -> Table | None:
    """Return the settings in which several studies differ, a column for each; None for a single study."""
    if len(study.homes) < 2:
        return None
    lines = []
    for key in varying(study.runs):
        values = []
        for home in study.homes:
            texts = _distinct(run.settings.get(key) for run in study.runs if run.folder.parent == home)
            values.append(", ".join(texts))
        if len(set(values)) > 1:
            # The page sorts by the place of a text among its neighbours.
            cells = [Cell(value, sorted(set(values)).index(value)) for value in values]
            lines.append(TableRow(key, cells))
    return Table("setting", list(study.homes.values()), lines) if lines else None


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


def _environment(runs: Sequence[RunResult]) -> dict[str, Any]:
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
