"""Claims held against their runs: an effect for each prediction, and the verdict that follows by rule."""

import math
from collections import defaultdict
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
from study.judge.results import RunResult, load_study, run_folders
from study.judge.statistics import LEVEL, Effect, Outcome, holm, outcome, p_refuted, paired, seeds_to_decide
from study.plan.claims import Claim, Prediction, Term, settings_of

OUTCOMES = ("opposite", "no effect", "undecided", "supported")  # of a prediction; the first is the worst for the claim


@dataclass(frozen=True)
class Finding:
    """A prediction held against the runs; `reason` says why there is no effect, where there is none."""

    prediction: Prediction
    effect: Effect | None = None
    reason: str = ""

    @property
    def direction(self) -> Literal[1, -1]:
        """The side of zero that is claimed."""
        return 1 if self.prediction.predicts == "above" else -1

    @property
    def outcome(self) -> Outcome:
        """What the effect says of the prediction by itself, one of `OUTCOMES`."""
        return outcome(self.effect, self.direction, self.prediction.margin) if self.effect else "undecided"

    @property
    def p(self) -> float:
        """The p of the hypothesis that the effect is 0; nan where it could not be tested, as with a single seed."""
        return self.effect.p if self.effect else math.nan

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would probably decide an undecided prediction; None where no number would."""
        if self.effect is None or self.outcome != "undecided":
            return None
        return seeds_to_decide(self.effect, self.prediction.margin)


@dataclass
class ClaimResult:
    """A claim, the folder of its study and its table, the finding on each prediction, and the verdict.

    The verdict is supported, refuted or undecided; withheld if the control of the instrument fails. `rows` is empty
    where the study has no run yet beside its tuning runs.
    """

    claim: Claim
    folder: Path
    rows: list[Row]
    findings: list[Finding]
    control: Control | None
    verdict: str = ""

    @property
    def deciding(self) -> list[Finding]:
        """The findings that decide the claim: all but the asides."""
        return [finding for finding in self.findings if not finding.prediction.aside]

    @property
    def decisive(self) -> Finding:
        """The finding that the verdict rests on: the worst for the claim, and of equal outcomes the least sure one."""

        def order(finding: Finding) -> tuple[int, float]:
            # What could not be tested is the least sure of all.
            return OUTCOMES.index(finding.outcome), -1.0 if math.isnan(finding.p) else -finding.p

        return min(self.deciding, key=order)


def metric_at(run: RunResult, metric: str, share: float, log: bool = False) -> float:
    """Return a metric of a run at a share of its tokens. A `*` in the metric stands for the mean over all layers.

    With `log`, return its natural logarithm.

    Raises:
        ValueError: the run has no such figure there.
    """
    # Which layers there are is written nowhere but in the records.
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

    Each term counts with its weight.

    Raises:
        ValueError: an arm is missing, not whole, trained on other seeds or not comparable, or nothing differs.
    """
    if not arms:
        raise ValueError("no run has begun")
    sums: dict[int, float] = {}
    # A contrast of contrasts may span texts and budgets, as long as the weights of each of them add up to 0.
    balance: dict[tuple[str | None, int], float] = defaultdict(float)
    for weight, term in prediction.terms:
        arm = _arm_of(term, arms)
        balance[arm.runs[0].fingerprint, arm.runs[0].budget] += weight
        share = term.get("at", prediction.at)
        values = arm.values(lambda run, share=share: metric_at(run, prediction.metric, share, prediction.log))
        if sums and values.keys() != sums.keys():
            raise ValueError(f"the seeds do not pair: {sorted(values)} of {arm.label}, {sorted(sums)} before")
        for seed, value in values.items():
            sums[seed] = sums.get(seed, 0.0) + weight * value
    if prediction.minus and any(abs(weight) > 1e-6 for weight in balance.values()):
        raise ValueError("its two sides are trained on other data or budgets, so they do not compare")
    if not any(sums.values()):
        # Most likely a field that nothing reads, or two names of one function.
        raise ValueError("its two sides are equal to the last bit: nothing differs")
    return paired([sums[seed] for seed in sorted(sums)])


def judge_claims(claims: Mapping[Path, Claim]) -> list[ClaimResult]:
    """Judge the claims, by the folder of each one's study, as `claim_verdicts`; asides take no part."""
    results = []
    for folder, claim in claims.items():
        # While a study tunes, it has no run that counts, and the other claims are judged all the same.
        rows = compare_arms(load_study([folder])) if run_folders(folder) else []
        findings = []
        for prediction in claim.prediction:
            try:
                findings.append(Finding(prediction, contrast(prediction, [row.arm for row in rows])))
            except ValueError as error:
                findings.append(Finding(prediction, reason=str(error)))
        control = CONTROLS[claim.control]() if claim.control else None
        results.append(ClaimResult(claim, folder, rows, findings, control))
    # A verdict needs the findings on all claims, since Holm's adjustment goes over them.
    verdicts = claim_verdicts([result.deciding for result in results])
    for result, verdict in zip(results, verdicts, strict=True):
        result.verdict = "withheld" if result.control and not result.control.ok else verdict
    return results


def claim_verdicts(claims: Sequence[Sequence[Finding]]) -> list[str]:
    """Return the verdict on each claim from the findings on its predictions, one or more.

    - supported: every prediction is. The claim's p is the largest of theirs (intersection-union test, Berger, 1982),
      and Holm's adjustment goes over the claims.
    - refuted: one prediction is opposite or without effect. Here Holm's adjustment goes over the claim's predictions.
    - undecided: anything else.
    """
    largest = []
    for findings in claims:
        p_values = [finding.p for finding in findings]
        largest.append(math.nan if any(map(math.isnan, p_values)) else max(p_values))
    verdicts = []
    for findings, p in zip(claims, holm(largest), strict=True):
        if p < LEVEL and all(finding.outcome == "supported" for finding in findings):
            verdicts.append("supported")
        else:
            verdicts.append("refuted" if _is_refuted(findings) else "undecided")
    return verdicts


def _is_refuted(findings: Sequence[Finding]) -> bool:
    p_values = []
    for one in findings:
        p_values.append(p_refuted(one.effect, one.direction, one.prediction.margin) if one.effect else math.nan)
    contrary = [one.outcome in ("opposite", "no effect") for one in findings]
    return any(against and p < LEVEL for against, p in zip(contrary, holm(p_values), strict=True))


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
