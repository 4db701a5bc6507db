"""Claims held against their runs: an effect for each prediction, and the verdict that follows by rule."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from study.judge.arms import Arm
from study.judge.controls import CONTROLS, Control
from study.judge.effects import Row, compare_arms
from study.judge.results import Run, Study, load_study, run_folders
from study.judge.statistics import Effect, holm, paired, verdict
from study.plan.claims import Claim, Prediction, settings_of

OPPOSITE = {"supported": "refuted", "refuted": "supported"}


@dataclass(frozen=True)
class Finding:
    """A prediction held against the runs; `reason` says why the verdict is what it is, or why there is no effect."""

    prediction: Prediction
    effect: Effect | None = None
    p: float = math.nan
    verdict: str = "not shown"
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim, the folder of its study and its table, what was found for each prediction, and the verdict.

    `rows` is empty where no run that counts has begun.
    """

    claim: Claim
    folder: Path
    rows: list[Row]
    findings: tuple[Finding, ...]
    control: Control | None
    verdict: str

    @property
    def decisive(self) -> Finding:
        """The finding that the verdict rests on: the first that is refuted, else not shown, else the first."""
        order = ("refuted", "not shown", "supported")
        return min(deciding(self.findings), key=lambda finding: order.index(finding.verdict))


def value(run: Run, metric: str, at: float, log: bool = False) -> float:
    """Return a metric of a run at a share of its tokens, the mean over all keys that match where it holds a `*`.

    With `log`, its natural logarithm.

    Raises:
        ValueError: the run has no such figure there.
    """
    keys = dict.fromkeys(key for record in run.records for key in record if fnmatchcase(key, metric))
    curves = [run.curve(key) for key in keys]
    tokens = at * run.records[-1]["tokens"] if run.records else 0
    if not curves or not all(curve and curve[0][0] <= tokens <= curve[-1][0] for curve in curves):
        raise ValueError(f"{run.name} has no {metric} at {100 * at:g} % of its tokens")
    found = fmean(float(np.interp(tokens, *np.transpose(curve))) for curve in curves)
    if log and found <= 0:
        raise ValueError(f"{run.name}: {metric} is {found:g} and has no logarithm")
    return math.log(found) if log else found


def contrast(prediction: Prediction, arms: Sequence[Arm]) -> Effect:
    """Return the effect that a prediction speaks of, over the seeds that its arms share.

    Raises:
        ValueError: an arm is missing, not whole, trained on other seeds or not comparable, or nothing differs.
    """
    sums: dict[int, float] = {}
    data: dict[int, list[tuple[Any, int]]] = {1: [], -1: []}
    for sign, terms in ((1, prediction.plus), (-1, prediction.minus)):
        for term in terms:
            wanted = settings_of(term)
            found = [arm for arm in arms if wanted.items() <= arm.runs[0].settings.items()]
            if len(found) != 1:
                raise ValueError(f"{' '.join(map(str, wanted.values()))}: {len(found)} arms, not one")
            if found[0].trouble:
                raise ValueError(f"{found[0].label}: {found[0].trouble}")
            first = found[0].runs[0]
            data[sign].append(((first.summary or {}).get("data/fingerprint"), first.budget))
            at = term.get("at", prediction.at)
            values = {run.seed: value(run, prediction.metric, at, prediction.log) for run in found[0].runs}
            if sums and values.keys() != sums.keys():
                raise ValueError(f"the seeds do not pair: {sorted(values)} of {found[0].label}, {sorted(sums)} before")
            sums = {seed: sums.get(seed, 0.0) + sign * v for seed, v in values.items()}
    if prediction.minus and Counter(data[1]) != Counter(data[-1]):
        raise ValueError("its two sides are trained on other data or budgets, so they do not compare")
    if not any(sums.values()):  # a field that nothing reads, a name that fell through
        raise ValueError("its two sides are equal to the last bit: nothing differs")
    return paired([sums[seed] for seed in sorted(sums)])


def judge_prediction(prediction: Prediction, effect: Effect, p: float) -> tuple[str, str]:
    """Return supported, refuted or not shown, and the reason.

    Predicting "not above" is predicting that "above" will be refuted.
    """
    side: Literal[1, -1] = 1 if prediction.predicts.endswith("above") else -1
    outcome, reason = verdict(effect, side, p, prediction.smallest)
    if prediction.predicts.startswith("not"):
        return OPPOSITE.get(outcome, outcome), reason
    return outcome, reason


def conclude(findings: Sequence[Finding], control: Control | None) -> str:
    """Return the verdict: supported if every prediction is, refuted if one is; withheld if the control failed."""
    if control and not control.ok:
        return "withheld"
    outcomes = {finding.verdict for finding in deciding(findings)}
    return "refuted" if "refuted" in outcomes else "supported" if outcomes == {"supported"} else "not shown"


def deciding(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that the claim stands or falls with."""
    return [finding for finding in findings if not finding.prediction.aside]


def judge_claims(claims: Mapping[Path, Claim]) -> list[Judged]:
    """Judge the claims, by the folder of each one's study; Holm's adjustment is over all their predictions.

    It guards "supported". "refuted" is decided for each prediction by itself. Of "not above" and "not below", which
    say that the contrary will be refuted, it is the other way round.
    """
    rows: dict[Path, list[Row]] = {}
    effects: list[tuple[Path, Prediction, Effect | None, str]] = []
    for path, claim in claims.items():
        begun = bool(run_folders(path))
        study = load_study([path]) if begun else Study([], [], {})
        rows[path] = compare_arms(study) if begun else []
        for prediction in claim.prediction:
            try:
                effects.append((path, prediction, contrast(prediction, [row.arm for row in rows[path]]), ""))
            except ValueError as error:
                effects.append((path, prediction, None, str(error) if begun else "no run has begun"))
    adjusted = holm([effect.p if effect else math.nan for _, _, effect, _ in effects])
    findings: dict[Path, list[Finding]] = {}
    for (path, prediction, effect, reason), p in zip(effects, adjusted, strict=True):
        outcome, why = judge_prediction(prediction, effect, p) if effect else ("not shown", reason)
        findings.setdefault(path, []).append(Finding(prediction, effect, p, outcome, why))
    judged = []
    for path, claim in claims.items():
        control = CONTROLS[claim.control]() if claim.control else None
        found = tuple(findings[path])
        judged.append(Judged(claim, path, rows[path], found, control, conclude(found, control)))
    return judged
