"""Claims: what each predicts, written down as data before its runs, and the verdict that follows by rule.

A claim is a study whose TOML also holds [claim] and one [[prediction]] or more. A prediction is a contrast: the metric
of some arms minus that of others, paired by seed, with the side of zero on which the claim says that it lies.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from study.arms import Arm
from study.config import Tree, merge
from study.controls import CONTROLS, Control
from study.effects import Row, compare_arms
from study.grid import expand, is_study
from study.results import Run, Study, load_study, run_folders
from study.statistics import SMALLEST, Effect, holm, paired, verdict
from training.config import SECTIONS, tree

Term = dict[str, Any]  # settings of an arm, such as {"activation": "sigmoid", "n_layer": 4}, and perhaps "at"
OPPOSITE = {"supported": "refuted", "refuted": "supported"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Prediction:
    """What a claim says of a contrast: the sum over `plus` minus the sum over `minus`."""

    text: Annotated[str, Field(min_length=1)]
    predicts: Literal["above", "below", "not above", "not below"]
    plus: Annotated[tuple[Term, ...], Field(min_length=1)]
    minus: tuple[Term, ...] = ()
    metric: str = "val/loss"  # with * for the mean over layers, such as act/blocks.*/mean_share
    log: bool = False  # of the metric, for ratios
    at: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the budget; a term may name its own
    smallest: Annotated[float, Field(ge=0)] = SMALLEST  # effect that matters, in the metric's unit
    aside: bool = False  # of interest, but not what the claim says: its verdict does not count
    unit: str = "nats/token"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Claim:
    """A claim as it is told. `control` names what must hold, else the instrument is broken and the verdict withheld."""

    name: Annotated[str, Field(pattern=r"^\w+$")]
    title: Annotated[str, Field(min_length=1)]
    told: Annotated[str, Field(min_length=1)]
    figure: Literal["depth", "centring", "gaps", "vocabulary", "gates"]
    expected: Annotated[str, Field(min_length=1)]  # by us, before the runs
    change: Annotated[str, Field(min_length=1)]  # what would change the verdict
    control: Literal["", "plain_net", "sign_agreement"] = ""
    prediction: tuple[Prediction, ...] = ()

    def __post_init__(self):
        if all(prediction.aside for prediction in self.prediction):
            raise UserError("a claim needs a [[prediction]] that is no aside.")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A prediction held against the runs; `reason` says why the verdict is what it is, or why there is no effect."""

    prediction: Prediction
    effect: Effect | None = None
    p: float = math.nan
    verdict: str = "not shown"
    reason: str = ""


@dataclasses.dataclass(frozen=True)
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


def read_claim(plan: Tree, source: str) -> Claim | None:
    """Return the claim of a tree, None if it makes none.

    Raises:
        UserError: a key or value is not allowed, or a prediction speaks of runs that are not one arm of the study.
    """
    if "claim" not in plan:
        if "prediction" in plan:
            raise UserError(f"{source}: a [[prediction]] without a [claim].")
        return None
    if not is_study(plan):
        raise UserError(f"{source}: a [claim] needs a study, and this is a single run.")
    try:
        claim = TypeAdapter(Claim).validate_python(plan["claim"] | {"prediction": plan.get("prediction", [])})
    except ValidationError as error:
        raise UserError("\n  ".join([f"{source}:", *map(_explained, error.errors())])) from None
    runs = [
        {f"{section}.{key}": value for section, part in tree(run).items() for key, value in part.items()}
        for run in expand(plan, source).values()
    ]
    for prediction in claim.prediction:
        for term in (*prediction.plus, *prediction.minus):
            at = term.get("at", prediction.at)
            if not isinstance(at, int | float) or not 0 <= at <= 1:
                raise UserError(f"{source}: {prediction.text}: at = {at!r}: a share of the budget, from 0 to 1.")
            wanted = settings_of(term)
            found = {repr(run | {"train.seed": 0}) for run in runs if wanted.items() <= run.items()}
            if len(found) != 1:
                raise UserError(f"{source}: {prediction.text}: {wanted} describes {len(found)} arms of it, not one.")
    return claim


def _explained(problem: Any) -> str:
    """Write one of pydantic's problems: the key, what was given unless it is missing, what is allowed."""
    key = ".".join(map(str, ("claim", *problem["loc"])))
    given = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{key}{given}: {problem['msg'].removeprefix('Value error, ')}"


def settings_of(term: Term) -> dict[str, Any]:
    """Return the settings that a term names, as `section.field`.

    Raises:
        UserError: no section has such a field.
    """
    fields = {name: f"{section}.{name}" for section, part in SECTIONS.items() for name in part.__dataclass_fields__}
    if wrong := [key for key in term if key not in fields and key != "at"]:
        raise UserError(unknown("field in a prediction", wrong[0], fields))
    return {fields[key]: value for key, value in term.items() if key != "at"}


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
        rows[path] = compare_arms(study, study.reference) if begun else []
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


def claims_in(folder: Path) -> dict[Path, Claim]:
    """Return the claims among the studies in a folder, in order of their names.

    Raises:
        UserError: two of them have one name.
    """
    plans = {path.parent: merge(path, {}) for path in sorted(folder.glob("*/study.toml"))}
    found = {path: claim for path, plan in plans.items() if (claim := read_claim(plan, str(path / "study.toml")))}
    if twice := [name for name, n in Counter(claim.name for claim in found.values()).items() if n > 1]:
        raise UserError(f"{folder}: two claims have the name {twice[0]}.")
    return found
