"""Claims on a page and in the terminal: a verdict for each, its predictions, and the figure that decides it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from errors import UserError
from study.judge.arms import joined
from study.judge.controls import Control
from study.judge.effects import Row
from study.judge.statistics import MINIMUM_SEEDS, MOST_SEEDS
from study.judge.verdicts import OUTCOMES, ClaimResult, Finding, judge_claims
from study.plan.plan import claims_in
from study.report.claims_figures import centring_figure, gate_figure, vocabulary_figures
from study.report.drawing import Figure
from study.report.figures import depth_figure, final_figure, heat_maps
from study.report.page import PROBES_TEXT, Section, write_page
from study.report.sentences import setting
from study.report.table import EMPTY, NEVER, Cell, Strip, Table, TableRow, cell, interval, seeds_text

STRIP_TEXT = (
    "In each picture, the tinted side is what the claim predicts, the grey band is the margin, and the bar is the "
    "interval."
)
Pictures = list[tuple[str, Figure, str]]  # title, figure, text
WORDS = {"supported": "Supported", "refuted": "Refuted", "undecided": "Not decided", "withheld": "Withheld"}


def report_claims(folder: Path, out: Path | None = None) -> Path:
    """Print a line for each claim among the studies in a folder, write their page, and return its path.

    The folder of a single study already has a report.html, so that its page is verdict.html.

    Raises:
        UserError: the folder holds no study of a claim, or the page cannot be written.
    """
    claims = claims_in(folder)
    if not claims:
        raise UserError(f"{folder} holds no study of a claim. Claims are tested by: python train.py configs/claims/")
    results = judge_claims(claims)
    for result in results:
        print(claim_line(result))
    path = out or folder / ("verdict.html" if folder in claims else "report.html")
    parts = []
    for result in results:
        # A relative link still works when the whole folder is moved.
        parts += claim_sections(result, os.path.relpath(result.folder / "report.html", path.parent))
    title = f"{folder.resolve().name}: claims"
    try:
        write_page(path, title, _headline(results), _rule(results), parts, {})
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}. Choose another --out.") from None
    print(f"report: {path}")
    return path


def claim_line(result: ClaimResult) -> str:
    """Return a claim's verdict, the prediction that decides it with its figures, and the scope, on one line."""
    parts = [f"{result.claim.name} {WORDS[result.verdict].upper()}: “{result.claim.title}”", _basis(result)]
    if result.rows:
        parts.append(setting(result.rows))
    return " · ".join(parts)


def claim_sections(result: ClaimResult, link: str) -> list[Section]:
    """Return the sections of one claim: the verdict, then the figures that decide it, then everything measured."""
    claim, name = result.claim, result.claim.name.lower()
    content = {
        "verdict": WORDS[result.verdict],
        "basis": _basis(result),
        "told": claim.told,
        "table": _predictions(result),
        "link": link,
    }
    parts = [Section(name, f"{claim.name} · {claim.title}", "claim", content, reading=" ".join(_reading(result)))]
    # An arm that is not whole counts for no prediction, and would mislead in a figure.
    rows = [row for row in result.rows if not row.arm.trouble]
    figures = [picture for picture in PICTURES[claim.figure](rows) if picture[1]] if rows else []
    for number, (title, drawn, text) in enumerate(figures):
        parts.append(Section(f"{name}-{number}", title, "figure", drawn, text))
    maps = heat_maps(rows)
    if maps:
        parts.append(Section(f"{name}-probes", f"{claim.name} · inside the network", "heat", maps, PROBES_TEXT))
    return parts


def _basis(result: ClaimResult) -> str:
    """Return what a verdict rests on: a failed control, or the decisive prediction with its figures."""
    if result.verdict == "withheld":
        return "the control of the instrument fails"
    finding = result.decisive
    if finding.effect is None:
        return f"{finding.prediction.text}: {finding.reason}"
    needed = ""
    if finding.outcome == "undecided" and finding.effect.n > 1:
        needed = f"; {seeds_text(finding.seeds_needed)} seeds would probably decide"
    figures = f"{_size(finding)}, margin {finding.prediction.margin:g}, n = {finding.effect.n}"
    return f"{finding.prediction.text}: {finding.outcome} ({figures}){needed}"


def _size(finding: Finding) -> str:
    """Write an effect with its unit, and its interval where it has one."""
    effect, unit = finding.effect, finding.prediction.unit
    if effect is None:
        return ""
    shown = f"{effect.mean:+.3f} {unit}".strip()
    return f"{shown} {interval(effect)}" if effect.n > 1 else shown


def _predictions(result: ClaimResult) -> Table:
    titles = ["outcome", "against the margin", "effect, 95 % interval", "n", "seeds to decide"]
    return Table(
        "the claim predicts", titles, [_prediction_row(finding) for finding in result.findings], _notes(result)
    )


def _prediction_row(finding: Finding) -> TableRow:
    prediction, effect = finding.prediction, finding.effect
    aside = "aside: " if prediction.aside else ""
    undecided = effect and effect.n > 1 and finding.outcome == "undecided"
    needed = finding.seeds_needed if undecided else None
    cells = [
        # Sorted from supported to opposite.
        Cell(finding.outcome, OUTCOMES[::-1].index(finding.outcome), strong=finding.outcome != "undecided"),
        _strip(finding),
        cell(effect and effect.mean, lambda _: _size(finding)),
        cell(effect and effect.n, "d"),
        Cell(seeds_text(needed), needed or NEVER) if undecided else EMPTY,
    ]
    return TableRow(aside + prediction.text, cells)


def _strip(finding: Finding) -> Cell:
    """Return the interval of an effect against its margin, as a picture: 0 in the middle, what is claimed shaded."""
    effect, prediction = finding.effect, finding.prediction
    if effect is None or effect.n < 2:
        return EMPTY
    reach = 1.15 * max(abs(effect.low), abs(effect.high), 2 * prediction.margin)

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 2)  # in a hundred units from left to right

    side = 1 if prediction.predicts == "above" else -1
    picture = Strip(
        low=place(effect.low),
        mean=place(effect.mean),
        high=place(effect.high),
        margin=(place(-prediction.margin), place(prediction.margin)),
        claimed=(50.0, 100.0) if side > 0 else (0.0, 50.0),
        outcome=finding.outcome,
    )
    text = f"{effect.mean:+.3f} {interval(effect)}, margin ±{prediction.margin:g}"
    return Cell(text, side * effect.mean / prediction.margin, picture=picture)


def _notes(result: ClaimResult) -> list[str]:
    """Return why effects are missing, a control that fails, the scope, and rates at the edge."""
    texts: dict[str, list[str]] = {}
    for finding in result.findings:
        if finding.reason:
            texts.setdefault(finding.reason, []).append(finding.prediction.text)
    notes = []
    for reason, predictions in texts.items():
        names = "All" if len(predictions) == len(result.findings) else joined(predictions)
        notes.append(f"{names}: {reason}.")
    if result.control and not result.control.ok:
        notes.append(_control(result.control))
    if result.rows:
        notes.append(f"Scope: {setting(result.rows)}.")
    edges = [row.arm.label for row in result.rows if row.arm.edge]
    if edges:
        notes.append(f"At the edge of its learning rates, so that a better one may lie beyond: {joined(edges)}.")
    return notes


def _control(control: Control) -> str:
    """Return what a control measured beside what theory expects."""
    figures = [
        f"{name} {control.measured[name]:.3f} (theory {control.expected[name]:.3f})" for name in control.expected
    ]
    return f"Control {'holds' if control.ok else 'FAILS'}: {control.text}: {', '.join(figures)}."


def _reading(result: ClaimResult) -> list[str]:
    """Return what is folded below a claim: how its picture reads, what we expected, what would change the verdict."""
    texts = [STRIP_TEXT]
    if result.control and result.control.ok:
        texts.append(_control(result.control))
    texts.append(f"Expected by us before the runs: {result.claim.expected}")
    texts.append(f"What would change the verdict: {result.claim.change}")
    return texts


def _depth(rows: Sequence[Row]) -> Pictures:
    text = "After the last step. A line that rises to the right is a gradient that vanishes on its way back."
    return [("Gradient against depth", depth_figure(rows), text), *_gaps(rows)]


def _centring(rows: Sequence[Row]) -> Pictures:
    text = "After the last step, the mean over blocks. The curve is theory for random output deltas."
    return [("Same-sign share of W2’s gradient", centring_figure(rows), text), *_gaps(rows)]


def _vocabulary(rows: Sequence[Row]) -> Pictures:
    gap, total, accuracy, ece = vocabulary_figures(rows)
    tokens = "after the last step, on the few tokens that the probes read"
    return [
        ("Heads against vocabulary", gap, "Validation loss minus softmax’s, all heads normalised; 95 % intervals."),
        ("Sum of the sigmoids", total, "Mean over tokens of Σσ(z) after the last step; 1 would be a distribution."),
        ("Accuracy", accuracy, f"How often the likeliest token is the next one, {tokens}."),
        ("Calibration", ece, f"Expected calibration error, 15 bins (Guo et al., 2017), {tokens}, which raise it."),
    ]


def _gates(rows: Sequence[Row]) -> Pictures:
    text = "Distribution of act(gate) after the last step, all blocks. The outermost bins hold all that lies beyond."
    return [("Gates", gate_figure(rows), text), *_gaps(rows)]


def _gaps(rows: Sequence[Row]) -> Pictures:
    text = f"Bars are 95 % intervals over paired seeds. Shaded: ±{rows[0].margin:g} nats per token."
    return [(f"Final loss against {rows[0].reference}", final_figure(rows), text)]


PICTURES: dict[str, Callable[[Sequence[Row]], Pictures]] = {
    "depth": _depth,
    "centring": _centring,
    "gaps": _gaps,
    "vocabulary": _vocabulary,
    "gates": _gates,
}


def _headline(results: Sequence[ClaimResult]) -> str:
    """Return which claims have which verdict, and of a single undecided claim what would decide it."""
    titles: dict[str, list[str]] = {}
    for result in results:
        titles.setdefault(WORDS[result.verdict], []).append(f"“{result.claim.title}”")
    answer = ". ".join(f"{word}: {joined(names)}" for word, names in titles.items())
    finding = results[0].decisive
    if len(results) > 1 or results[0].verdict != "undecided" or finding.effect is None:
        return answer
    tokens = f"{results[0].rows[0].arm.runs[0].budget:,} tokens"
    seeds = "one seed" if finding.effect.n == 1 else f"{finding.effect.n} seeds"
    if finding.effect.n < MINIMUM_SEEDS:
        return f"{answer}. {tokens} and {seeds} cannot tell; a verdict needs {MINIMUM_SEEDS} seeds"
    needed = f"{finding.seeds_needed} seeds could" if finding.seeds_needed else f"nor could {MOST_SEEDS}"
    return f"{answer}. {tokens} and {seeds} cannot tell; {needed}"


def _rule(results: Sequence[ClaimResult]) -> str:
    return (
        "a claim is supported if each of its predictions is, and refuted if one comes out opposite or without an "
        f"effect that matters. An effect is a paired difference over {MINIMUM_SEEDS} seeds or more with its 95 % "
        f"interval. Holm's adjustment goes over the claims ({len(results)}) for “supported”, and over a claim's own "
        "predictions for “refuted”"
    )
