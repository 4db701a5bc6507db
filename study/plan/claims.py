"""Claims: what each predicts, written down as data before its runs.

A claim is a study whose TOML also holds [claim] and one [[prediction]] or more. A prediction is a contrast: the metric
of some arms minus that of others, paired by seed, with the side of zero on which the claim says that it lies. What the
runs say of it is judged in study/judge/verdicts.py.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from study.judge.statistics import SMALLEST
from study.plan.config import Tree, merge
from study.plan.grid import expand, is_study
from training.config import SECTIONS, tree

Term = dict[str, Any]  # settings of an arm, such as {"activation": "sigmoid", "n_layer": 4}, and perhaps "at"


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
        if prediction.minus and len(prediction.plus) != len(prediction.minus):
            raise UserError(f"{source}: {prediction.text}: plus and minus name equally many arms, or minus none.")
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


def claims_in(folder: Path) -> dict[Path, Claim]:
    """Return the claims among the studies in a folder, in order of their names, or that of a study's own folder.

    Raises:
        UserError: two of them have one name.
    """
    own = folder / "study.toml"
    paths = [own] if own.exists() else sorted(folder.glob("*/study.toml"))
    plans = {path.parent: merge(path, {}) for path in paths}
    found = {path: claim for path, plan in plans.items() if (claim := read_claim(plan, str(path / "study.toml")))}
    if twice := [name for name, n in Counter(claim.name for claim in found.values()).items() if n > 1]:
        raise UserError(f"{folder}: two claims have the name {twice[0]}.")
    return found
