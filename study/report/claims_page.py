"""Claims on a page and in the terminal: a verdict for each, its predictions, and the picture that decides it."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from study.judge.arms import joined
from study.judge.effects import Row
from study.judge.statistics import MINIMUM_SEEDS
from study.judge.verdicts import ClaimResult as Judged, Finding, judge_claims
from study.plan.claims import claims_in
from study.report import published, table
from study.report.claims_figures import centring_figure, gate_figure, vocabulary_figures
from study.report.drawing import Figure
from study.report.figures import depth_figure, final_figure, heat_maps
from study.report.page import PROBES_TEXT, Section, write_page

Pictures = list[tuple[str, Figure, str]]  # title, figure, text


def report_claims(folder: Path, out: Path | None = None) -> Path:
    """Print a line for each claim among the studies in a folder, write their page, and return its path.

    A study's own folder, which has a report, gets `verdict.html` beside it.

    Raises:
        UserError: the folder holds no study of a claim, or the page cannot be written.
    """
    claims = claims_in(folder)
    if not claims:
        raise UserError(f"{folder} holds no study of a claim. Claims are tested by: python train.py configs/claims/")
    judged = judge_claims(claims)
    for one in judged:
        print(line(one))
    path = out or folder / ("verdict.html" if folder in claims else "report.html")
    links = [os.path.relpath(one.folder / "report.html", path.parent) for one in judged]
    parts = [part for one, link in zip(judged, links, strict=True) for part in sections(one, link)]
    try:
        write_page(
            path, f"{folder.resolve().name}: claims about the sigmoid", headline(judged), _rule(judged), parts, {}
        )
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}. Choose another --out.") from None
    print(f"report: {path}")
    return path


def headline(judged: Sequence[Judged]) -> str:
    """Return how many claims have which verdict, and which."""
    kinds = dict.fromkeys(one.verdict for one in judged)
    told = (f"{joined(o.claim.title for o in judged if o.verdict == kind)} {kind}" for kind in kinds)
    return "; ".join(told)


def line(judged: Judged) -> str:
    """Return claim, verdict, effect, interval, p after Holm, n and scope, of the prediction that decides it."""
    head = f"{judged.claim.name} {judged.claim.title}: {judged.verdict.upper()}"
    return " · ".join([head, why_of(judged), *([table.setting(judged.rows)] if judged.rows else [])])


def why_of(judged: Judged) -> str:
    """Return what the verdict rests on: a failed control, or the prediction that decides, with its figures."""
    if judged.verdict == "withheld":
        return "the control of the instrument fails"
    return f"{judged.decisive.prediction.text}: {figures_of(judged.decisive)}"


def figures_of(found: Finding) -> str:
    """Return an effect with its interval, p and n; where there is none, why."""
    if found.effect is None:
        return found.reason
    e = found.effect
    unit = f" {found.prediction.unit}" if found.prediction.unit else ""
    p = table.p_value(found.p)
    interval = f" {table.interval(e)}, p {p if p.startswith('<') else f'= {p}'}" if e.n > 1 else ""
    return f"{e.mean:+.3f}{unit}{interval}, n = {e.n}"


def sections(judged: Judged, link: str) -> list[Section]:
    """Return the sections of one claim: the verdict, then what decides it, then everything measured."""
    claim, name = judged.claim, judged.claim.name.lower()
    found = [Section(name, f"{claim.name} · {claim.title}", "claim", _claim(judged, link))]
    rows = [row for row in judged.rows if not row.arm.trouble]
    pictures = [picture for picture in PICTURES[claim.figure](rows) if picture[1]] if rows else []
    found += [Section(f"{name}-{i}", title, "figure", drawn, text) for i, (title, drawn, text) in enumerate(pictures)]
    if maps := heat_maps(rows):
        found.append(Section(f"{name}-probes", f"{claim.name} · inside the network", "heat", maps, PROBES_TEXT))
    return found


def _claim(judged: Judged, link: str) -> dict[str, Any]:
    claim, control = judged.claim, judged.control
    predictions = []
    for found in judged.findings:
        p, e = found.prediction, found.effect
        cells = [
            {"value": e.mean if e else "", "text": f"{e.mean:+.3f} {p.unit}" if e else "–"},
            {"value": e.high - e.low if e else "", "text": table.interval(e) if e and e.n > 1 else "–"},
            {"value": found.p if e else "", "text": table.p_value(found.p) if e and e.n > 1 else "–"},
            {"value": e.n if e else "", "text": str(e.n) if e else "–"},
            {"value": ("supported", "not shown", "refuted").index(found.verdict), "text": found.verdict},
        ]
        text = f"{'aside: ' * p.aside}{p.text} ({p.predicts} 0 by {p.smallest:g})"
        predictions.append({"text": text, "cells": cells})
    reasons = dict.fromkeys(found.reason for found in judged.findings)
    told = {reason: [f.prediction.text for f in judged.findings if f.reason == reason] for reason in reasons}
    notes = [f"{joined(texts) if len(texts) < len(judged.findings) else 'All'}: {r}." for r, texts in told.items()]
    if control:
        figures = (f"{n} {control.measured[n]:.3f} (theory {control.expected[n]:.3f})" for n in control.expected)
        notes.append(f"Control {'holds' if control.ok else 'FAILS'}: {control.text}: {', '.join(figures)}.")
    if claim.figure == "gaps":
        arms = [row.arm for row in judged.rows]
        losses = {arm.activation: loss for arm in arms if (loss := arm.mean("val/loss")) is not None}
        notes += published.agreement(losses)
    notes += [f"Expected by us before the runs: {claim.expected}", f"What would change the verdict: {claim.change}"]
    if judged.rows:
        notes.append(f"Scope: {table.setting(judged.rows)}.")
    edges = [row.arm.label for row in judged.rows if row.arm.edge]
    if edges:
        notes.append(f"At the edge of its learning rates, so that a better one may lie beyond: {joined(edges)}.")
    said = {"verdict": judged.verdict, "why": why_of(judged), "told": claim.told, "link": link}
    return said | {"predictions": predictions, "notes": notes}


def _depth(rows: Sequence[Row]) -> Pictures:
    return [
        ("Gradient against depth", depth_figure(rows), "After the last step; a line that rises to the right vanishes."),
        _gaps(rows),
    ]


def _centring(rows: Sequence[Row]) -> Pictures:
    text = "After the last step, the mean over blocks. The curve is what random output deltas would give."
    return [("Same-sign share of W2’s gradient", centring_figure(rows), text), _gaps(rows)]


def _vocabulary(rows: Sequence[Row]) -> Pictures:
    gap, total, accuracy, ece = vocabulary_figures(rows)
    few = "after the last step, on the few tokens that the probes read"
    return [
        ("Heads against vocabulary", gap, "Validation loss minus softmax’s, all heads normalised; 95 % intervals."),
        ("Sum of the sigmoids", total, "Mean over tokens of Σσ(z) after the last step; 1 would be a distribution."),
        ("Accuracy", accuracy, f"How often the likeliest token is the next one, {few}."),
        ("Calibration", ece, f"Expected calibration error, 15 bins (Guo et al., 2017), {few}, which raise it."),
    ]


GATES_TEXT = "Distribution of act(gate) after the last step, all blocks; what lies beyond counts in the outermost bins."


def _gates(rows: Sequence[Row]) -> Pictures:
    return [("Gates", gate_figure(rows), GATES_TEXT), _gaps(rows)]


def _gaps(rows: Sequence[Row]) -> tuple[str, Figure, str]:
    return (
        f"Final loss against {rows[0].reference}",
        final_figure(rows),
        "Bars are 95 % t intervals over paired seeds.",
    )


PICTURES: dict[str, Callable[[Sequence[Row]], Pictures]] = {
    "depth": _depth,
    "centring": _centring,
    "gaps": lambda rows: [_gaps(rows)],
    "vocabulary": _vocabulary,
    "gates": _gates,
}


def _rule(judged: Sequence[Judged]) -> str:
    tests = sum(not math.isnan(found.p) for one in judged for found in one.findings)
    return (
        f"a claim is supported if each of its predictions is, and refuted if one is; an effect is a paired mean "
        f"difference over {MINIMUM_SEEDS} seeds or more with its 95 % t interval; “supported” also needs p below "
        f"5 % after Holm over all {tests} predictions, while “refuted” is decided for each by itself; of a prediction "
        "“not above” or “not below” it is the other way round"
    )
