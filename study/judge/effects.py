"""Each arm against its reference: effects over paired seeds with their intervals, and the verdict on each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from study.judge.arms import Arm, make_arms, reference_of
from study.judge.curves import Curve, area, at_share, tokens_to
from study.judge.results import RunResult, Study
from study.judge.statistics import (
    Effect,
    block_bootstrap,
    detectable,
    holm,
    outcome,
    pair,
    paired,
    seeds_to_decide,
)
from study.plan.config import MARGIN, StudyConfig

EARLY = 0.25  # share of the budget at which the early difference is taken
SHARES = (0.5, 0.75, 1.0)  # shares of the budget whose reference loss an arm has to reach
BLOCK_TOKENS = 2048  # of validation text that the block bootstrap keeps together: about a scene of a play
VERDICTS = ("better", "equal", "undecided", "worse")


@dataclass(frozen=True)
class Reach:
    """Tokens until a loss of the reference is reached, as a multiple of the reference's own.

    `ratio` is the mean over seeds, None if a seed never reaches it; `never` counts these seeds.
    """

    ratio: float | None
    never: int
    n: int


@dataclass
class Row:
    """An arm and what was measured of its difference to the reference, in nats per token.

    A row starts with what is known of every arm. `compare_arms` fills in the measured fields as far as the runs allow,
    and `note` gives the reason where there is no comparison.
    """

    arm: Arm
    reference: str
    margin: float = MARGIN  # the smallest difference that matters
    is_reference: bool = False
    partner: Arm | None = None  # the arm of the reference that this arm is compared with
    note: str = ""

    final: Effect | None = None  # at the end
    noise: float | None = None  # half the 95 % interval of `final` over other validation text, with the same networks
    p: float = math.nan  # of `final`, after Holm
    verdict: str = ""  # one of `VERDICTS`; empty for the reference
    seeds_needed: int | None = None  # that would probably decide; None where it is decided, or no number would
    detectable: float = math.nan  # the smallest difference that these seeds would probably find

    early: Effect | None = None
    change: Effect | None = None  # from early to final
    area: Effect | None = None  # mean over training
    reach: dict[float, Reach] = field(default_factory=dict)


def compare_arms(study: Study, reference: str | None = None) -> list[Row]:
    """Compare every arm with its reference arm; Holm's adjustment is over all comparisons that have an interval.

    The reference is the study's own unless another is given. If no arm is the reference, the activation of the first
    arm takes its place. If nobody named a reference and every arm is one (say, all are GELU), the first arm's part
    that others lack takes its place, such as `optimizer=adamw`.
    """
    arms = make_arms(study)
    # A reference that somebody named is kept even where every arm is one. The default gives way.
    named = reference is not None or study.named is not None
    reference = reference or study.named or StudyConfig.reference
    if not any(reference in arm.names for arm in arms):
        reference = arms[0].activation
    if not named and all(reference in arm.names for arm in arms):
        own = [name for name in arms[0].names if not all(name in arm.names for arm in arms)]
        reference = own[0] if own else reference
    rows = []
    for arm in arms:
        partner, reason = reference_of(arm, arms, reference)
        row = Row(arm, reference, study.margin, partner is arm, partner, arm.trouble or reason)
        if partner and not row.note:
            _measure(row, partner)
        rows.append(row)
    # The reference's difference to itself is 0 by construction, and no test.
    tests = [math.nan if row.final is None or row.is_reference else row.final.p for row in rows]
    for row, p in zip(rows, holm(tests), strict=True):
        if not row.is_reference:
            _judge(row, p)
    return rows


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the lowest difference first, and those without one last."""
    return sorted(rows, key=lambda row: row.final.mean if row.final else math.inf)


def _judge(row: Row, p: float) -> None:
    """Fill in the verdict of a row, and what would decide it where it is undecided. `p` is after Holm."""
    if row.final is None:
        row.verdict = "undecided" if row.arm.unsettled else ""
        return
    row.p, row.detectable = p, detectable(row.final)
    row.verdict = table_verdict(row.final, row.margin, p)
    if row.verdict == "undecided":
        row.seeds_needed = seeds_to_decide(row.final, row.margin)


def table_verdict(effect: Effect, margin: float, p: float) -> str:
    """Return better, worse, equal or undecided. `p` is the effect's after Holm."""
    # In a table no direction is claimed beforehand, so each effect is held against its own.
    above = effect.mean > 0
    words = {"supported": "worse" if above else "better", "no effect": "equal"}
    return words.get(outcome(effect, 1 if above else -1, margin, p), "undecided")


def _measure(row: Row, partner: Arm) -> None:
    """Fill in the differences of a row to its partner, or in `note` why there are none."""
    arm = row.arm
    if partner.trouble:
        row.note = f"the {partner.label} runs to compare with are not whole"
        return
    try:
        differences = pair(arm.finals("val/loss"), partner.finals("val/loss"))
    except ValueError as error:
        row.note = str(error).rstrip(".")
        return
    if not row.is_reference and not any(differences):
        # Most likely a field that nothing reads, or a name that stands for the reference itself.
        row.note = f"every loss equals that of {partner.label} to the last bit: nothing differs"
        return
    # A run may have been scored often enough for its end, and too seldom for the way there.
    row.final, row.noise = paired(differences), _text_noise(arm, partner)
    try:
        # Both arms have the same seeds, in order, since their final losses could be paired.
        early = pair(arm.values(_early_loss), partner.values(_early_loss))
        curves = [(_curve(ours), _curve(theirs)) for ours, theirs in zip(arm.runs, partner.runs, strict=True)]
        areas = []
        for ours, theirs in curves:
            start = max(ours[0][0], theirs[0][0])  # a mean over the same tokens
            areas.append(area(ours, start) - area(theirs, start))
        reach = {share: _reach(curves, share) for share in SHARES}
    except ValueError:  # the loss was scored too seldom for its course to be known
        return
    row.early, row.area, row.reach = paired(early), paired(areas), reach
    row.change = paired([late - first for late, first in zip(differences, early, strict=True)])


def _curve(run: RunResult) -> Curve:
    """Return the validation curve of a run, without the loss before the first step."""
    # That loss is ln of the vocabulary for every arm, and no part of how an arm learns.
    return [point for point in run.curve("val/loss") if point[0] > 0]


def _early_loss(run: RunResult) -> float:
    return at_share(_curve(run), EARLY)


def _reach(curves: Sequence[tuple[Curve, Curve]], share: float) -> Reach:
    ratios, never = [], 0
    # A mean over the seeds that do reach the loss would flatter an arm of which others do not.
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
    # Windows of other lengths or of another text cannot be subtracted from each other.
    block = max(1, BLOCK_TOKENS // arm.runs[0].settings.get("model.context", 1))
    texts = {run.fingerprint for run in arm.runs}
    if arm is partner or len(texts) > 1 or len(lengths) != 1 or lengths.pop() < 2 * block:
        return None
    # The mean over seeds comes first: what is left then is the noise of the text, not that of the seeds.
    differences = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    low, high = block_bootstrap(differences, block)
    return (high - low) / 2
