"""Claims on a page and in the terminal: a verdict for each, its predictions, and the figure that decides it."""

import os
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from study.judge.arms import joined
from study.judge.controls import Control
from study.judge.statistics import MINIMUM_SEEDS
from study.judge.verdicts import OUTCOMES, ClaimResult, Finding, judge_claims
from study.plan.plan import claims_in
from study.report.cells import EMPTY, Cell, Strip, Table, TableRow, cell, effect_text, seeds_cell, word_cell
from study.report.claims_figures import FIGURES
from study.report.figures import final_figure, heat_maps
from study.report.page import Section, write_page
from study.report.sentences import setting
from study.report.study_page import PROBES_TEXT

COLUMNS = ["outcome", "against the margin", "effect, 95 % interval", "n", "seeds to decide"]
RULE = (
    "a claim is supported if each of its predictions is, and refuted if one comes out opposite or without an effect "
    f"that matters. An effect is a paired difference over {MINIMUM_SEEDS} seeds or more with its 95 % interval. Holm's "
    "adjustment goes over the claims ({}) for “supported”, and over a claim's own predictions for “refuted”"
)
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
        write_page(path, title, _headline(results), RULE.format(len(results)), parts, {})
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
        "table": Table("the claim predicts", COLUMNS, [*map(_prediction_row, result.findings)], _notes(result)),
        "link": link,
    }
    parts = [Section(name, f"{claim.name} · {claim.title}", "claim", content, reading=" ".join(_reading(result)))]
    # An arm that is not whole counts for no prediction, and would mislead in a figure.
    rows = [row for row in result.rows if not row.arm.trouble]
    if not rows:
        return parts
    figures = [(title, draw(rows), text) for title, draw, text in FIGURES[claim.figure]]
    if claim.figure != "vocabulary":  # whose first figure shows the gaps
        bars = f"Bars are 95 % intervals over paired seeds. Shaded: ±{rows[0].margin:g} nats per token."
        figures.append((f"Final loss against {rows[0].reference}", final_figure(rows), bars))
    for number, (title, drawn, text) in enumerate(figure for figure in figures if figure[1]):
        parts.append(Section(f"{name}-{number}", title, "figure", drawn, text))
    maps = heat_maps(rows)
    if maps:
        parts.append(Section(f"{name}-probes", f"{claim.name} · inside the network", "heat", maps, PROBES_TEXT))
    return parts


def _basis(result: ClaimResult) -> str:
    """Return what a verdict rests on: a failed control, or the decisive prediction with its figures."""
    if result.verdict == "withheld":
        return "the control of the instrument fails"
    # A claim of several predictions stands or falls with one of them, which is named with its figures.
    finding, prediction = result.decisive, result.decisive.prediction
    if finding.effect is None:
        return f"{prediction.text}: {finding.reason}"
    figures = f"{effect_text(finding.effect, prediction.unit)}, margin {prediction.margin:g}, n = {finding.effect.n}"
    basis = f"{prediction.text}: {finding.outcome} ({figures})"
    if finding.outcome != "undecided" or finding.effect.n == 1:
        return basis
    return f"{basis}; {seeds_cell(finding.seeds_needed).text} seeds would probably decide"


def _prediction_row(finding: Finding) -> TableRow:
    prediction, effect = finding.prediction, finding.effect
    open_with_seeds = effect is not None and effect.n > 1 and finding.outcome == "undecided"
    cells = [
        word_cell(finding.outcome, OUTCOMES[::-1]),  # sorted from supported to opposite
        _strip(finding),
        Cell(effect_text(effect, prediction.unit), effect.mean) if effect else EMPTY,
        cell(effect and effect.n, "d"),
        seeds_cell(finding.seeds_needed) if open_with_seeds else EMPTY,
    ]
    return TableRow(f"aside: {prediction.text}" if prediction.aside else prediction.text, cells)


def _strip(finding: Finding) -> Cell:
    """Return the interval of an effect against its margin, as a picture: 0 in the middle, what is claimed shaded."""
    effect, prediction = finding.effect, finding.prediction
    if effect is None or effect.n < 2:
        return EMPTY
    # The margin always takes half of the picture at most, so that small effects stay small.
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
    text = f"{effect_text(effect)}, margin ±{prediction.margin:g}"
    return Cell(text, side * effect.mean / prediction.margin, picture=picture)


def _notes(result: ClaimResult) -> list[str]:
    """Return why effects are missing, a control that fails, the scope, and rates at the edge."""
    # Predictions often lack an effect for one reason, such as an arm that is not whole: it is given once.
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
    return [
        "In each picture, the tinted side is what the claim predicts, the grey band is the margin, and the bar is the "
        "interval.",
        *([_control(result.control)] if result.control and result.control.ok else []),
        f"Expected by us before the runs: {result.claim.expected}",
        f"What would change the verdict: {result.claim.change}",
    ]


def _headline(results: Sequence[ClaimResult]) -> str:
    """Return which claims have which verdict; what would decide an open one is said beside its verdict."""
    titles: dict[str, list[str]] = {}
    for result in results:
        titles.setdefault(WORDS[result.verdict], []).append(f"“{result.claim.title}”")
    return ". ".join(f"{word}: {joined(names)}" for word, names in titles.items())
