"""Each arm against its reference: effects over paired seeds with their intervals, and the verdict on each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

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

EARLY = 0.25  # share of the budget at which the early gap is taken
BLOCK_TOKENS = 2048  # of validation text that the block bootstrap keeps together: about a scene of a play
SHARES = (0.5, 0.75, 1.0)  # shares of the budget whose reference loss an arm has to reach
NO_DIFFERENCE = "no difference that matters"
VERDICTS = ("better", NO_DIFFERENCE, "not shown", "worse")


@dataclass(frozen=True)
class Reach:
    """Tokens to a loss that the reference reaches, relative to its own tokens: the mean, if every seed gets there."""

    ratio: float | None
    never: int
    n: int


@dataclass(frozen=True)
class Row:
    """An arm's line: what it differs from its reference by, in nats per token.

    `note` says why there is no comparison, `reason` why the verdict is what it is. `shared` is the difference at the
    reference's best tuning rate `shared_lr`, taken from the tuning runs. `noise` is half the 95 % interval of `final`
    that the choice of validation text alone would give, these networks being as they are.
    """

    arm: Arm
    reference: str
    is_reference: bool = False
    partner: Arm | None = None
    note: str = ""
    final: Effect | None = None
    noise: float | None = None
    p: float = math.nan
    verdict: str = ""
    reason: str = ""
    early: Effect | None = None
    change: Effect | None = None
    area: Effect | None = None
    reach: dict[float, Reach] = field(default_factory=dict)
    shared_lr: float | None = None
    shared: Effect | None = None


def compare_arms(study: Study, reference: str | None = None) -> list[Row]:
    """Compare every arm with its reference arm; Holm's adjustment is over all comparisons with an interval.

    The reference is the study's own unless it is given. Where no arm is the reference, the first one's activation takes
    its place, and where nobody named one and all arms are, what tells the first from others.
    """
    arms, nobody = make_arms(study), reference is None and study.named is None
    reference = reference or study.reference
    if not any(reference in arm.names for arm in arms):
        reference = arms[0].activation
    if nobody and all(reference in arm.names for arm in arms):
        own = (name for name in arms[0].names if not all(name in arm.names for arm in arms))
        reference = next(own, reference)
    rows = [_row(arm, arms, reference) for arm in arms]
    adjusted = holm([math.nan if row.final is None or row.is_reference else row.final.p for row in rows])
    return [_judged(row, p) for row, p in zip(rows, adjusted, strict=True)]


def judge(effect: Effect, p: float) -> tuple[str, str]:
    """Return the verdict on an arm in a table, where no direction is claimed beforehand, and the reason.

    `better` or `worse`: that claim is supported. `no difference that matters`: both are refuted.
    """
    up, down = (verdict(effect, direction, p) for direction in (1, -1))
    for (outcome, reason), name in ((up, "worse"), (down, "better")):
        if outcome == "supported":
            return name, reason
    if up[0] == down[0] == "refuted":
        interval = f"the {100 * effect.level:g} % interval [{effect.low:+.4f}, {effect.high:+.4f}]"
        return NO_DIFFERENCE, f"{interval} lies within ±{SMALLEST:g} (n = {effect.n})"
    nearest = sorted((up, down), key=lambda claim: claim is not (up if effect.mean > 0 else down))
    outcome, reason = next(claim for claim in nearest if claim[0] == "not shown")
    return outcome, reason.replace(" in the claimed direction", "")


def paired_curves(arm: Arm, partner: Arm) -> list[tuple[Curve, Curve]]:
    """Return both validation curves of each seed that the arms share, without the losses of untrained networks."""
    ours, theirs = ({run.seed: [p for p in run.curve("val/loss") if p[0]] for run in a.runs} for a in (arm, partner))
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _row(arm: Arm, arms: Sequence[Arm], reference: str) -> Row:
    partner, note = reference_of(arm, arms, reference)
    row = Row(arm, reference, partner is arm, partner, arm.trouble or note)
    if not row.note and partner and partner.trouble:
        row = replace(row, note=f"the {partner.label} runs to compare with are not whole")
    if partner is None or row.note:
        return row
    try:
        gaps = pair(arm.finals("val/loss"), partner.finals("val/loss"))
    except ValueError as error:
        return replace(row, note=str(error).rstrip("."))
    if partner is not arm and not any(gaps):  # a field that nothing reads, a name that fell through
        return replace(row, note=f"every loss equals that of {partner.label} to the last bit: nothing differs")
    shared_lr, shared = _shared(arm, partner)
    row = replace(row, final=paired(gaps), noise=_noise(arm, partner), shared_lr=shared_lr, shared=shared)
    curves = paired_curves(arm, partner)
    try:
        early = [at_share(a, EARLY) - at_share(b, EARLY) for a, b in curves]
        return replace(
            row,
            early=paired(early),
            change=paired([late - gap for late, gap in zip(gaps, early, strict=True)]),
            area=paired([_area(a, b) for a, b in curves]),
            reach={share: _reach(curves, share) for share in SHARES},
        )
    except ValueError:  # the loss was scored too seldom to say anything of its course
        return row


def _judged(row: Row, p: float) -> Row:
    if row.final is None or row.is_reference:
        return row
    name, reason = judge(row.final, p)
    return replace(row, p=p, verdict=name, reason=reason)


def _noise(arm: Arm, partner: Arm) -> float | None:
    """Return half the bootstrap's interval of the gap, averaged over seeds window by window."""
    windows = [run.windows for a in (arm, partner) for run in sorted(a.runs, key=lambda run: run.seed)]
    if arm is partner or len({len(w) for w in windows}) != 1 or not len(windows[0]):
        return None
    block = max(1, BLOCK_TOKENS // arm.runs[0].settings["model.context"])
    if len(windows[0]) < 2 * block:
        return None
    gaps = np.mean(windows[: len(windows) // 2], axis=0) - np.mean(windows[len(windows) // 2 :], axis=0)
    _, low, high = block_bootstrap(gaps, block, draws=1000, seed=0)
    return (high - low) / 2


def _area(ours: Curve, theirs: Curve) -> float:
    start = max(ours[0][0], theirs[0][0])
    return area(ours, start) - area(theirs, start)


def _reach(curves: Sequence[tuple[Curve, Curve]], share: float) -> Reach:
    ratios = []
    for ours, theirs in curves:
        target = at_share(theirs, share)
        own, tokens = tokens_to(theirs, target), tokens_to(ours, target)
        ratios.append(tokens / own if tokens is not None and own else None)
    reached = [ratio for ratio in ratios if ratio is not None]
    never = len(ratios) - len(reached)
    return Reach(None if never else fmean(reached), never, len(ratios))


def _shared(arm: Arm, partner: Arm) -> tuple[float | None, Effect | None]:
    """Return the reference's best tuning rate, and the arm's difference there if its tuning runs have that rate."""
    ours, theirs = arm.tuned(), {lr: losses for lr, losses in partner.tuned().items() if losses}
    if not theirs:
        return None, None
    lr = min(theirs, key=lambda lr: fmean(theirs[lr].values()))
    budgets = {run.budget for run in (*arm.tuning, *partner.tuning)}
    try:
        return lr, paired(pair(ours.get(lr, {}), theirs[lr])) if len(budgets) == 1 else None
    except ValueError:
        return lr, None
