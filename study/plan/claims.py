"""Claims: what each predicts, written down as data before its runs.

A claim is a study whose TOML also holds [claim] and one [[prediction]] or more. A prediction is a contrast: the metric
of some arms minus that of others, paired by seed, and the side of zero on which the claim expects it. The runs are held
against it in study/judge/verdicts.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import UserError, unknown
from study.plan.config import MARGIN, Tree, flatten
from study.plan.grid import is_study
from training.config import SECTIONS, STRICT, RunConfig, build_sections
from training.config import tree as sections_of

Term = dict[str, Any]  # settings of an arm, such as {"activation": "sigmoid", "n_layer": 4}, and keys of `OF_TERM`
OF_TERM = ("at", "weight")  # keys of a term that describe no arm
Text = Annotated[str, Field(min_length=1)]
# not strict: TOML has lists, not tuples
Terms = Annotated[tuple[Term, ...], Field(strict=False)]


@dataclass(frozen=True, config=STRICT)
class Prediction:
    """What a claim says of a contrast: the sum over the arms of `plus` minus the sum over those of `minus`.

    A term of these sums may have a `weight`, 1 by default: for a mean over several contrasts, or a slope.
    """

    text: Text
    predicts: Annotated[Literal["above", "below"], Field(description="side of zero")]
    plus: Annotated[Terms, Field(min_length=1)]
    minus: Terms = ()
    metric: str = "val/loss"  # with * for the mean over layers, such as act/blocks.*/mean_share
    log: bool = False  # the contrast is of the metric's logarithm, for ratios
    at: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the budget; a term may have its own
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = MARGIN  # smallest effect that matters, in the unit
    aside: bool = False  # of interest only: its verdict does not count for the claim's
    unit: str = "nats/token"


@dataclass(frozen=True, config=STRICT)
class Claim:
    """A claim as people tell it. If its `control` fails, the instrument is broken and the verdict is withheld."""

    name: Annotated[str, Field(pattern=r"^\w+$")]
    title: Text
    told: Text
    figure: Annotated[Literal["depth", "centring", "gaps", "vocabulary", "gates"], Field(description="its picture")]
    expected: Text  # by us, before the runs
    change: Text  # what would change the verdict
    control: Annotated[Literal["", "plain_net", "sign_agreement"], Field(description="what must hold")] = ""
    prediction: tuple[Prediction, ...] = ()


def read_claim(tree: Tree, source: str) -> Claim | None:
    """Return the claim of a study, None if it makes none. `check_arms` holds it against the study's arms.

    Raises:
        UserError: a key or value is not allowed.
    """
    tables = tree.get("prediction", [])
    if "claim" not in tree:
        if tables:
            raise UserError(f"{source}: a [[prediction]] without a [claim].")
        return None
    if not is_study(tree):
        raise UserError(f"{source}: a [claim] needs a study, and this is a single run.")
    # Each prediction is a section of its own here, so that a message says which one is wrong.
    sections: dict[str, Any] = {f"prediction {number}": table for number, table in enumerate(tables, 1)}
    parts = {"claim": Claim} | dict.fromkeys(sections, Prediction)
    claim, *predictions = build_sections({"claim": tree["claim"]} | sections, parts, source).values()
    if all(prediction.aside for prediction in predictions):
        raise UserError(f"{source}: a claim needs a [[prediction]] that is no aside.")
    for prediction in predictions:
        _check_terms(prediction, f"{source}: {prediction.text}")
    return dataclasses.replace(claim, prediction=tuple(predictions))


def _check_terms(prediction: Prediction, where: str) -> None:
    """Raise `UserError` for a share or weight that cannot be, and for two sides that do not weigh the same."""
    for term in (*prediction.plus, *prediction.minus):
        at, weight = term.get("at", prediction.at), weight_of(term)
        if not isinstance(at, int | float) or not 0 <= at <= 1:
            raise UserError(f"{where}: at = {at!r}: a share of the budget, from 0 to 1.")
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"{where}: weight = {weight!r}: a number above 0.")
    plus, minus = (sum(map(weight_of, terms)) for terms in (prediction.plus, prediction.minus))
    if minus and not math.isclose(plus, minus):
        raise UserError(
            f"{where}: the weights of plus sum to {plus:g}, those of minus to {minus:g}. Make them equal, or leave "
            "minus out. A term without a weight has 1."
        )


def check_arms(claim: Claim, arms: Mapping[RunConfig, set[int]], source: str) -> None:
    """Raise `UserError` unless each term of a claim describes exactly one arm, and the terms of a prediction pair.

    `arms` holds the seeds of each arm, a run without its seed.
    """
    settings = [(flatten(sections_of(arm)), seeds) for arm, seeds in arms.items()]
    for prediction in claim.prediction:
        seeds_of_first: set[int] = set()
        for term in (*prediction.plus, *prediction.minus):
            wanted = settings_of(term)
            found = [seeds for arm, seeds in settings if wanted.items() <= arm.items()]
            if len(found) != 1:
                raise UserError(f"{source}: {prediction.text}: {wanted} describes {len(found)} arms of it, not one.")
            seeds_of_first = seeds_of_first or found[0]
            if found[0] != seeds_of_first:
                raise UserError(
                    f"{source}: {prediction.text}: the seeds of its arms do not pair: {sorted(seeds_of_first)} and "
                    f"{sorted(found[0])}. Give them the same train.seed."
                )


def weight_of(term: Term) -> float:
    """Return the factor of a term in its sum."""
    return term.get("weight", 1.0)


def settings_of(term: Term) -> dict[str, Any]:
    """Return the settings that a term names, as `section.field`.

    Raises:
        UserError: no section has such a field.
    """
    fields = {name: f"{section}.{name}" for section, part in SECTIONS.items() for name in part.__dataclass_fields__}
    settings = {key: value for key, value in term.items() if key not in OF_TERM}
    for key in settings:
        if key not in fields:
            raise UserError(unknown("field in a prediction", key, fields))
    return {fields[key]: value for key, value in settings.items()}
