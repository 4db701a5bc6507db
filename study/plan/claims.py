"""Claims: what each predicts, written down as data before its runs.

A claim is a study whose TOML also holds [claim] and one [[prediction]] or more. A prediction is a contrast: the metric
of some arms minus that of others, paired by seed, and the side of zero on which the claim expects it. The runs are held
against it in study/judge/verdicts.py.
"""

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from errors import UserError, unknown
from study.plan.config import MARGIN, Tree
from study.plan.grid import is_study
from training.config import SECTIONS, STRICT, build_sections


# Pydantic checks how a term counts. What it describes is any field of a run's config, and is held against the arms.
@with_config(ConfigDict(strict=True, allow_inf_nan=False))
class Term(TypedDict, total=False, extra_items=Any):
    """One arm in the sum of a prediction: its settings, such as `activation` and `n_layer`, and how it counts."""

    at: Annotated[float, Field(ge=0, le=1)]  # share of the budget; without it that of the prediction
    weight: Annotated[float, Field(gt=0)]  # without it 1


Text = Annotated[str, Field(min_length=1)]
# not strict: TOML has lists, not tuples
Terms = Annotated[tuple[Term, ...], Field(strict=False)]


@dataclass(frozen=True, config=STRICT)
class Prediction:
    """What a claim says of a contrast: the sum over the arms of `plus` minus the sum over those of `minus`.

    Weights make a contrast the mean over several differences, or a slope.
    """

    text: Text
    predicts: Annotated[Literal["above", "below"], Field(description="side of zero")]
    plus: Terms
    minus: Terms = ()
    metric: str = "val/loss"  # with * for the mean over layers, such as act/blocks.*/mean_share
    log: bool = False  # the contrast is of the metric's logarithm, for ratios
    at: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the budget; a term may have its own
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = MARGIN  # smallest effect that matters, in the unit
    aside: bool = False  # of interest only: its verdict does not count for the claim's
    unit: str = "nats/token"

    def __post_init__(self):
        if not self.plus:
            raise UserError(f"{self.text}: plus is empty. Name at least one arm.")
        plus = sum(weight for weight, _ in self.terms if weight > 0)
        minus = -sum(weight for weight, _ in self.terms if weight < 0)
        # Otherwise the contrast would move with the level of the metric, and not only with its differences.
        if minus and not math.isclose(plus, minus):
            raise UserError(
                f"{self.text}: the weights of plus sum to {plus:g}, those of minus to {minus:g}. Make them equal, or "
                "leave minus out. A term without a weight has 1."
            )

    @property
    def terms(self) -> list[tuple[float, Term]]:
        """Each term with its factor in the contrast, which is below 0 for those of `minus`."""
        factors = [(term.get("weight", 1.0), term) for term in self.plus]
        return factors + [(-term.get("weight", 1.0), term) for term in self.minus]


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
    """Return the claim of a study, None if it makes none. `make_plan` holds it against the study's arms.

    Raises:
        UserError: a key or value is not allowed.
    """
    tables = tree.get("prediction", [])
    if "claim" not in tree:
        if tables:
            raise UserError(f"{source}: a [[prediction]] without a [claim].")
        return None
    # A prediction compares arms over seeds, and a single run has one of each.
    if not is_study(tree):
        raise UserError(f"{source}: a [claim] needs a study, and this is a single run.")
    # Each prediction is a section of its own here, so that a message says which one is wrong.
    sections: dict[str, Any] = {f"prediction {number}": table for number, table in enumerate(tables, 1)}
    parts = {"claim": Claim} | dict.fromkeys(sections, Prediction)
    claim, *predictions = build_sections({"claim": tree["claim"]} | sections, parts, source).values()
    if all(prediction.aside for prediction in predictions):
        raise UserError(f"{source}: a claim needs a [[prediction]] that is no aside.")
    return dataclasses.replace(claim, prediction=tuple(predictions))


def settings_of(term: Term) -> dict[str, Any]:
    """Return the settings that a term names, as `section.field`.

    Raises:
        UserError: no section has such a field.
    """
    # No two sections have a field of one name, so that a term can leave the section out.
    fields = {name: f"{section}.{name}" for section, part in SECTIONS.items() for name in part.__dataclass_fields__}
    settings = {}
    for key, value in term.items():
        if key in Term.__annotations__:  # how the term counts, and not what it describes
            continue
        if key not in fields:
            raise UserError(unknown("field in a prediction", key, fields))
        settings[fields[key]] = value
    return settings
