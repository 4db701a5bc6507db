"""Each arm against its reference: effects over paired seeds with their intervals, and the verdict on each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from study.judge.arms import Arm, make_arms, reference_of
from study.judge.results import Study
from study.judge.statistics import (
    SMALLEST,
    Curve,
    Effect,
    area,
    at_share,
    block_bootstrap,
    holm,
    pair,
    paired,
    tokens_to,
    verdict,
)

EARLY = 0.25  # share of the budget at which the early difference is taken
SHARES = (0.5, 0.75, 1.0)  # shares of the budget whose reference loss an arm has to reach
BLOCK_TOKENS = 2048  # of validation text that the block bootstrap keeps together: about a scene of a play
NO_DIFFERENCE = "no difference that matters"
VERDICTS = ("better", NO_DIFFERENCE, "not shown", "worse")


@dataclass(frozen=True)
class Reach:
    """Tokens until a loss of the reference is reached, as a multiple of the reference's own.

    `ratio` is the mean over seeds, None if a seed never reaches it; `never` counts these seeds.
    """

    ratio: float | None
    never: int
    n: int


@dataclass(frozen=True)
class Row:
    """An arm and what was measured of its difference to the reference, in nats per token.

    A row starts with what is known of every arm. The measured fields are added as far as the runs allow, and `note`
    gives the reason where there is no comparison.
    """

    arm: Arm
    reference: str
    is_reference: bool = False
    partner: Arm | None = None  # the arm of the reference that this arm is compared with
    note: str = ""

    final: Effect | None = None  # at the end
    noise: float | None = None  # half the 95 % interval of `final` over other validation text, with the same networks
    p: float = math.nan  # of `final`, after Holm
    verdict: str = ""
    reason: str = ""  # for the verdict

    early: Effect | None = None
    change: Effect | None = None  # from early to final
    area: Effect | None = None  # mean over training
    reach: dict[float, Reach] = field(default_factory=dict)

    shared_lr: float | None = None  # the reference's best learning rate in tuning
    shared: Effect | None = None  # the difference there, between the tuning runs


def compare_arms(study: Study, reference: str | None = None) -> list[Row]:
    """Compare every arm with its reference arm; Holm's adjustment is over all comparisons that have an interval.

    The reference is the study's own unless another is given. If no arm is the reference, the activation of the first
    arm takes its place. If nobody named a reference and every arm is one (say, all are GELU), the first arm's part
    that others lack takes its place, such as `optimizer=adamw`.
    """
    arms = make_arms(study)
    named = reference is not None or study.named is not None
    reference = reference or study.reference
    if not any(reference in arm.names for arm in arms):
        reference = arms[0].activation
    if not named and all(reference in arm.names for arm in arms):
        own = [name for name in arms[0].names if not all(name in arm.names for arm in arms)]
        reference = own[0] if own else reference
    rows = [_compare(arm, arms, reference) for arm in arms]
    # The reference's difference to itself is 0 by construction, and no test.
    tests = [math.nan if row.final is None or row.is_reference else row.final.p for row in rows]
    results = []
    for row, p in zip(rows, holm(tests), strict=True):
        if row.final and not row.is_reference:
            outcome, reason = judge(row.final, p)
            row = replace(row, p=p, verdict=outcome, reason=reason)
        results.append(row)
    return results


def judge(effect: Effect, p: float) -> tuple[str, str]:
    """Return the verdict on an arm of a table, where no direction is claimed beforehand, and the reason.

    `better` or `worse`: that claim is supported. `no difference that matters`: both are refuted.
    """
    above = verdict(effect, 1, p)
    below = verdict(effect, -1, p)
    if above[0] == "supported":
        return "worse", above[1]
    if below[0] == "supported":
        return "better", below[1]
    if above[0] == below[0] == "refuted":
        interval = f"the {100 * effect.level:g} % interval [{effect.low:+.4f}, {effect.high:+.4f}]"
        return NO_DIFFERENCE, f"{interval} lies within ±{SMALLEST:g} (n = {effect.n})"
    # The claim on the side of the mean is the nearer one; its reason is given unless it is refuted.
    nearer, other = (above, below) if effect.mean > 0 else (below, above)
    _, reason = nearer if nearer[0] == "not shown" else other
    return "not shown", reason.replace(" in the claimed direction", "")


def paired_curves(arm: Arm, partner: Arm) -> list[tuple[Curve, Curve]]:
    """Return both validation curves of each seed that the arms share, without the loss before the first step."""
    partners = {run.seed: run for run in partner.runs}
    curves = []
    for run in arm.runs:
        if run.seed in partners:
            both = [run.curve("val/loss"), partners[run.seed].curve("val/loss")]
            ours, theirs = ([point for point in curve if point[0] > 0] for curve in both)
            curves.append((ours, theirs))
    return curves


def _compare(arm: Arm, arms: Sequence[Arm], reference: str) -> Row:
    partner, reason = reference_of(arm, arms, reference)
    row = Row(arm, reference, partner is arm, partner, arm.trouble or reason)
    if row.note or partner is None:
        return row
    if partner.trouble:
        return replace(row, note=f"the {partner.label} runs to compare with are not whole")
    try:
        differences = pair(arm.finals("val/loss"), partner.finals("val/loss"))
    except ValueError as error:
        return replace(row, note=str(error).rstrip("."))
    if partner is not arm and not any(differences):
        # Most likely a field that nothing reads, or a name that stands for the reference itself.
        return replace(row, note=f"every loss equals that of {partner.label} to the last bit: nothing differs")
    shared_lr, shared = _at_shared_rate(arm, partner)
    row = replace(row, final=paired(differences), noise=_text_noise(arm, partner), shared_lr=shared_lr, shared=shared)
    try:
        return replace(row, **_course(arm, partner, differences))
    except ValueError:  # the loss was scored too seldom for its course to be known
        return row


def _course(arm: Arm, partner: Arm, finals: Sequence[float]) -> dict[str, Any]:
    """Return the fields of a row on how the final differences came about.

    Raises:
        ValueError: a curve is too short.
    """
    curves = paired_curves(arm, partner)
    early = [at_share(ours, EARLY) - at_share(theirs, EARLY) for ours, theirs in curves]
    areas = []
    for ours, theirs in curves:
        start = max(ours[0][0], theirs[0][0])  # a mean over the same tokens
        areas.append(area(ours, start) - area(theirs, start))
    return {
        "early": paired(early),
        "change": paired([late - first for late, first in zip(finals, early, strict=True)]),
        "area": paired(areas),
        "reach": {share: _reach(curves, share) for share in SHARES},
    }


def _reach(curves: Sequence[tuple[Curve, Curve]], share: float) -> Reach:
    ratios, never = [], 0
    for ours, theirs in curves:
        # Each seed has its own target: the loss of the reference with the same data order.
        target = at_share(theirs, share)
        tokens, own = tokens_to(ours, target), tokens_to(theirs, target)
        if tokens is None or not own:
            never += 1
        else:
            ratios.append(tokens / own)
    return Reach(None if never else fmean(ratios), never, len(curves))


def _text_noise(arm: Arm, partner: Arm) -> float | None:
    """Return half the bootstrap's interval of the difference, which is averaged over seeds window by window."""
    ours, theirs = ([run.windows for run in one.runs] for one in (arm, partner))
    lengths = {len(windows) for windows in (*ours, *theirs)}
    block = max(1, BLOCK_TOKENS // arm.runs[0].settings.get("model.context", 1))
    if arm is partner or len(lengths) != 1 or lengths.pop() < 2 * block:
        return None
    # The mean over seeds comes first: what is left then is the noise of the text, not that of the seeds.
    differences = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    _, low, high = block_bootstrap(differences, block, draws=1000, seed=0)
    return (high - low) / 2


def _at_shared_rate(arm: Arm, partner: Arm) -> tuple[float | None, Effect | None]:
    """Return the reference's best tuning rate, and the arm's difference there if its tuning runs have that rate."""
    theirs = {lr: losses for lr, losses in partner.tuned().items() if losses}
    if not theirs:
        return None, None
    best = min(theirs, key=lambda lr: fmean(theirs[lr].values()))
    # Losses after different budgets do not compare.
    budgets = {run.budget for run in (*arm.tuning, *partner.tuning)}
    if len(budgets) > 1:
        return best, None
    try:
        return best, paired(pair(arm.tuned().get(best, {}), theirs[best]))
    except ValueError:  # the arm has no losses there, or those of other seeds
        return best, None
