"""What the page of a study shows: the sections in the order of reading, each with the words that explain it."""

from collections.abc import Iterable, Sequence
from typing import Any

import tomli_w

from study.judge.effects import Row
from study.judge.results import RunResult, Study, varying
from study.report.cells import Cell, Table, TableRow
from study.report.drawing import Figure
from study.report.figures import depth_figure, difference_figure, final_figure, heat_maps, loss_figure, rate_figure
from study.report.page import Section, value_text
from study.report.sentences import notes
from study.report.table import cost_columns, difference_columns, main_columns, page_table

DEPTH_TEXT = (
    "Gradient of the loss at the input of each block, relative to the last block, after the last step. A line that "
    "rises to the right is a gradient that shrinks on its way back. Runs with a gradient of 0 are left out."
)
PROBES_TEXT = "By block and training step, the mean over seeds. All arms share one scale of colours."


def sections(study: Study, rows: Sequence[Row], commands: str) -> list[Section]:
    """Return the sections of a study's page, without those that have nothing to show.

    `commands` train the runs again.
    """
    reference, margin = rows[0].reference, rows[0].margin
    loss, bracketed = loss_figure(rows), any(row.arm.bracket for row in rows)
    tried = "each seed trained at" if bracketed else "each arm was tuned on"
    bars, bands = "", ""
    if any(row.arm.seeds > 1 for row in rows):
        bars = "Bars are 95 % t intervals of the mean over paired seeds. Faint dots are single seeds."
        bands = "Lines are means over seeds; bands reach from the lowest seed to the highest."
    # The verdict comes first, then how it came about, then what is needed to judge and repeat it.
    shaded = f"Shaded: the margin, ±{margin:g} nats per token"
    # fmt: off
    parts = [
        Section("final", f"Final loss against {reference}", "figure", final_figure(rows),
                f"Below zero is better. {shaded}. Smaller differences do not matter.", bars),
        Section("results", "Results", "table", page_table(rows, main_columns(rows), notes(rows, study), mark=True),
                "Losses in nats per token on the whole validation set, after the last step."),
        Section("studies", "Where the studies differ", "table", _study_table(study)),
        Section("loss", "Loss", "figure", loss, _loss_text(loss), " ".join(filter(None, [bands, _cost_text(loss)]))),
        Section("difference", f"Difference to {reference}", "figure", difference_figure(rows),
                f"Validation loss minus the reference’s at the same seed and tokens. {shaded}.", bands),
        Section("course", "The difference in detail", "table", page_table(rows, difference_columns(rows)),
                f"How the differences to {reference} come about over training, in nats per token."),
        Section("rates", "Learning rates", "figure", rate_figure(rows),
                f"Final validation loss at the learning rates that {tried}. A ring marks the arm’s best.",
                _tuning_text(study)),
        Section("cost", "Cost", "table", page_table(rows, cost_columns(rows)), "Means over the runs of an arm."),
        Section("samples", "Samples", "samples", _samples(rows),
                "What one trained network of each arm writes: an impression, not evidence."),
        Section("depth", "Gradient against depth", "figure", depth_figure(rows), DEPTH_TEXT),
        Section("probes", "Inside the network", "heat", heat_maps(rows), PROBES_TEXT),
        Section("protocol", "Protocol", "settings", _protocol(study, rows),
                "Where the runs differ, then what they share."),
        Section("environment", "Environment", "settings", _environment([*study.runs, *study.tuning])),
        Section("config", "Config", "text", "\n".join(map(tomli_w.dumps, study.plans.values())).strip()),
        Section("reproduce", "Reproduce", "text", commands),
    ]
    # fmt: on
    return [part for part in parts if part.content]


def _loss_text(loss: Figure) -> str:
    text = "Lower is better. Faint lines are the training loss of single batches."
    if loss and "range" in loss["layout"]["yaxis"]:
        text += " The first fall is out of view: select “from the start” to see it."
    return text


def _cost_text(loss: Figure) -> str:
    """Return what a reader has to know who draws the loss against FLOPs or seconds."""
    if not loss or not loss["costs"]:
        return ""
    # The learning rate falls with a run's own tokens, so that curves at equal cost are at different learning rates.
    text = (
        "FLOPs are those of training, as the table of costs has them for a token. Against FLOPs or seconds, compare "
        "the ends of curves: before its own end, an arm that costs more has the higher learning rate."
    )
    if "seconds" in loss["costs"]:
        text += (
            " Seconds are those of training steps alone, without scores, probes and checkpoints, as a mean over seeds. "
            "The runs of a study share a machine, so that a run alone needs fewer."
        )
    return text


def _tuning_text(study: Study) -> str:
    """Return how the tuning runs differ from those that count, and which did not finish."""
    if not study.tuning:
        return ""
    budgets = " or ".join(f"{budget:,}" for budget in sorted({run.budget for run in study.tuning}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.tuning})))
    text = f"The tuning runs: {budgets} tokens, seeds {seeds}. Losses far above the best are out of view."
    failed = ", ".join(run.name for run in study.tuning if run.status != "finished")
    return f"{text} Not finished, so that their rates have no loss: {failed}." if failed else text


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
        # What varies within each study alike, such as the activation, makes no difference between them.
        if len(set(values)) > 1:
            # The page sorts by the place of a text among its neighbours.
            cells = [Cell(value, sorted(set(values)).index(value)) for value in values]
            lines.append(TableRow(key, cells))
    return Table("setting", list(study.homes.values()), lines) if lines else None


def _samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the text of each arm's first finished run, split into prompt and continuation."""
    # All samples have the same prompt and random numbers, so that only the networks differ.
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
    shown = _settings([run.settings for row in rows for run in row.arm.runs])  # in the order of the table
    if study.tuning:
        shown["varies"] |= {
            "tuning learning rates": _distinct(sorted(run.lr for run in study.tuning)),
            "tuning seeds": _distinct(sorted(run.seed for run in study.tuning)),
            "tuning tokens": _distinct(sorted(run.budget for run in study.tuning)),
        }
    return shown


def _environment(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return where the finished runs were trained: what all share, and the values of what differs."""
    return _settings([run.summary.get("environment", {}) for run in runs if run.summary])


def _settings(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that several tables share, by section, and all values of the others."""
    shared: dict[str, dict[str, str]] = {}
    varies = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        texts = _distinct(table.get(key) for table in tables)
        section, _, field = key.rpartition(".")
        if len(texts) > 1:
            varies[key] = texts
        else:
            shared.setdefault(section, {})[field] = texts[0]
    return {"shared": shared, "varies": varies} if tables else {}


def _distinct(values: Iterable[Any]) -> list[str]:
    """Return the texts of some values, each once."""
    return list(dict.fromkeys(map(value_text, values)))
