"""Claims held against their runs: an effect for each prediction, and the verdict that follows by rule."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from study.judge.arms import Arm
from study.judge.controls import CONTROLS, Control
from study.judge.effects import Row, compare_arms
from study.judge.results import Run, load_study, run_folders
from study.judge.statistics import Effect, holm, paired, verdict
from study.plan.claims import Claim, Prediction, Term, settings_of

OPPOSITE = {"supported": "refuted", "refuted": "supported"}
DECISIVE = ("refuted", "not shown", "supported")  # the first of these among the predictions decides the claim


@dataclass(frozen=True)
class Finding:
    """A prediction held against the runs; `reason` explains the verdict, or why there is no effect."""

    prediction: Prediction
    effect: Effect | None = None
    p: float = math.nan
    verdict: str = "not shown"
    reason: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim, the folder of its study and its table, the finding on each prediction, and the verdict.

    `rows` is empty where the study has no run yet beside its tuning runs.
    """

    claim: Claim
    folder: Path
    rows: list[Row]
    findings: tuple[Finding, ...]
    control: Control | None
    verdict: str

    @property
    def decisive(self) -> Finding:
        """The finding that the verdict rests on."""
        return min(deciding(self.findings), key=lambda finding: DECISIVE.index(finding.verdict))


def metric_at(run: Run, metric: str, share: float, log: bool = False) -> float:
    """Return a metric of a run at a share of its tokens. A `*` in the metric stands for the mean over all layers.

    With `log`, return its natural logarithm.

    Raises:
        ValueError: the run has no such figure there.
    """
    keys = dict.fromkeys(key for record in run.records for key in record if fnmatchcase(key, metric))
    tokens = share * run.records[-1]["tokens"] if run.records else 0
    values = []
    for key in keys:
        curve = run.curve(key)
        if curve and curve[0][0] <= tokens <= curve[-1][0]:
            values.append(float(np.interp(tokens, *np.transpose(curve))))
    # All layers or none: a mean over those that happen to have a figure would be of other layers in each run.
    if not values or len(values) < len(keys):
        raise ValueError(f"{run.name} has no {metric} at {100 * share:g} % of its tokens")
    mean = fmean(values)
    if log and mean <= 0:
        raise ValueError(f"{run.name}: {metric} is {mean:g} and has no logarithm")
    return math.log(mean) if log else mean


def contrast(prediction: Prediction, arms: Sequence[Arm]) -> Effect:
    """Return the effect that a prediction is about: the sum over `plus` minus the sum over `minus`, paired by seed.

    Raises:
        ValueError: an arm is missing, not whole, trained on other seeds or not comparable, or nothing differs.
    """
    sums: dict[int, float] = {}
    # A contrast of contrasts may span budgets, as long as both sides have the same.
    trained_on: dict[int, list[tuple[str | None, int]]] = {1: [], -1: []}
    terms = [(1, term) for term in prediction.plus] + [(-1, term) for term in prediction.minus]
    for sign, term in terms:
        arm = _arm_of(term, arms)
        trained_on[sign].append((arm.runs[0].fingerprint, arm.runs[0].budget))
        share = term.get("at", prediction.at)
        values = {run.seed: metric_at(run, prediction.metric, share, prediction.log) for run in arm.runs}
        if sums and values.keys() != sums.keys():
            raise ValueError(f"the seeds do not pair: {sorted(values)} of {arm.label}, {sorted(sums)} before")
        for seed, value in values.items():
            sums[seed] = sums.get(seed, 0.0) + sign * value
    if prediction.minus and Counter(trained_on[1]) != Counter(trained_on[-1]):
        raise ValueError("its two sides are trained on other data or budgets, so they do not compare")
    if not any(sums.values()):
        # Most likely a field that nothing reads, or two names of one function.
        raise ValueError("its two sides are equal to the last bit: nothing differs")
    return paired([sums[seed] for seed in sorted(sums)])


def judge_prediction(prediction: Prediction, effect: Effect, p: float) -> tuple[str, str]:
    """Return supported, refuted or not shown, and the reason.

    To predict "not above" is to predict that "above" will be refuted.
    """
    side: Literal[1, -1] = 1 if prediction.predicts.endswith("above") else -1
    outcome, reason = verdict(effect, side, p, prediction.smallest)
    if prediction.predicts.startswith("not"):
        outcome = OPPOSITE.get(outcome, "not shown")
    return outcome, reason


def conclude(findings: Sequence[Finding], control: Control | None) -> str:
    """Return a claim's verdict: supported if every prediction is, refuted if one is; withheld if the control failed."""
    if control and not control.ok:
        return "withheld"
    # A claim is the conjunction of its predictions, so that the worst outcome is the claim's.
    outcomes = {finding.verdict for finding in deciding(findings)}
    return next(outcome for outcome in DECISIVE if outcome in outcomes)


def deciding(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that decide the claim: all but the asides."""
    return [finding for finding in findings if not finding.prediction.aside]


def judge_claims(claims: Mapping[Path, Claim]) -> list[ClaimResult]:
    """Judge the claims, by the folder of each one's study; Holm's adjustment is over all their predictions.

    The adjustment protects "supported"; "refuted" is decided for each prediction by itself. For "not above" and
    "not below", which predict that the contrary will be refuted, it is the other way round.
    """
    rows = {folder: compare_arms(load_study([folder])) if run_folders(folder) else [] for folder in claims}
    # First every effect, since the adjustment needs all p values at once.
    effects: list[Effect | None] = []
    reasons: list[str] = []
    for folder, claim in claims.items():
        arms = [row.arm for row in rows[folder]]
        for prediction in claim.prediction:
            try:
                if not arms:
                    raise ValueError("no run has begun")
                effects.append(contrast(prediction, arms))
                reasons.append("")
            except ValueError as error:
                effects.append(None)
                reasons.append(str(error))
    adjusted = holm([effect.p if effect else math.nan for effect in effects])
    measured = zip(effects, adjusted, reasons, strict=True)
    results = []
    for folder, claim in claims.items():
        findings = []
        for prediction in claim.prediction:
            effect, p, reason = next(measured)
            outcome = "not shown"
            if effect:
                outcome, reason = judge_prediction(prediction, effect, p)
            findings.append(Finding(prediction, effect, p, outcome, reason))
        control = CONTROLS[claim.control]() if claim.control else None
        results.append(ClaimResult(claim, folder, rows[folder], tuple(findings), control, conclude(findings, control)))
    return results


def _arm_of(term: Term, arms: Iterable[Arm]) -> Arm:
    """Return the one arm that a term of a prediction describes, if it is whole."""
    # The plan was checked for this, but the folder may hold other runs than the plan asks for.
    wanted = settings_of(term)
    found = [arm for arm in arms if wanted.items() <= arm.runs[0].settings.items()]
    if len(found) != 1:
        raise ValueError(f"{' '.join(map(str, wanted.values()))}: {len(found)} arms, not one")
    if found[0].trouble:
        raise ValueError(f"{found[0].label}: {found[0].trouble}")
    return found[0]
