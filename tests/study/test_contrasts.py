"""Contrasts of several arms with weights: a slope over depth, and a mean over pairs."""

import numpy as np
import pytest
from helpers import GELU, NOISE, ROOT, write_plan, write_run

from model.plugin import load_plugin
from study.judge.effects import compare_arms
from study.judge.results import load_study
from study.judge.verdicts import contrast
from study.plan.claims import Prediction
from study.plan.plan import read_plan

DEPTHS = (4, 12, 24)
GAPS = {4: 0.10, 12: 0.16, 24: 0.13}


def deep_study(folder, budgets):
    """Write runs of sigmoid and gelu at three depths, with another gap at each."""
    write_plan(folder, model={"activation": ["sigmoid", "gelu"], "n_layer": [*DEPTHS]}, train={"seed": [*range(5)]})
    for depth in DEPTHS:
        for seed in range(5):
            for name, gap in (("gelu", 0.0), ("sigmoid", GAPS[depth] + depth * NOISE[seed])):
                run = folder / f"{name}-n_layer{depth}-seed{seed}"
                write_run(run, name, GELU[seed] + gap, tokens=budgets[depth], seed=seed)
                text = (run / "config.toml").read_text()
                (run / "config.toml").write_text(text.replace("n_layer = 2", f"n_layer = {depth}"))
    return [row.arm for row in compare_arms(load_study([folder]))]


def slope_weights():
    """Return the weights of a least-squares slope over log2 of the depth."""
    x = np.log2(DEPTHS)
    centred = x - x.mean()
    return dict(zip(DEPTHS, centred / (centred @ centred), strict=True))


def slope_prediction():
    plus, minus = [], []
    for depth, weight in slope_weights().items():
        first, second = ("sigmoid", "gelu") if weight > 0 else ("gelu", "sigmoid")
        plus.append({"activation": first, "n_layer": depth, "weight": abs(weight)})
        minus.append({"activation": second, "n_layer": depth, "weight": abs(weight)})
    return Prediction("slope", "above", tuple(plus), tuple(minus))


def test_weights_make_a_contrast_the_slope_of_a_gap_over_depth(tmp_path):
    arms = deep_study(tmp_path, dict.fromkeys(DEPTHS, 1000))
    effect = contrast(slope_prediction(), arms)
    slopes = [np.polyfit(np.log2(DEPTHS), [GAPS[d] + d * noise for d in DEPTHS], 1)[0] for noise in NOISE]
    assert effect.mean == pytest.approx(np.mean(slopes))
    assert effect.sd == pytest.approx(np.std(slopes, ddof=1))


def test_each_budget_weighs_the_same_on_both_sides(tmp_path):
    arms = deep_study(tmp_path, {4: 1000, 12: 2000, 24: 4000})
    assert contrast(slope_prediction(), arms).n == 5
    uneven = Prediction(
        "it",
        "above",
        ({"activation": "sigmoid", "n_layer": 4}, {"activation": "gelu", "n_layer": 12, "weight": 0.5}),
        ({"activation": "gelu", "n_layer": 4, "weight": 0.5}, {"activation": "sigmoid", "n_layer": 12}),
    )
    with pytest.raises(ValueError, match="other data or budgets"):
        contrast(uneven, arms)


@pytest.mark.usefixtures("registry")
def test_the_shipped_slope_over_depth_has_the_weights_of_least_squares():
    load_plugin(ROOT / "configs" / "claims" / "repair.py")
    claim = read_plan(ROOT / "configs" / "claims" / "c1-gradients.toml", {}).claim
    assert claim is not None
    prediction = next(one for one in claim.prediction if "doubling" in one.text)
    weights = slope_weights()
    for sign, terms in ((1, prediction.plus), (-1, prediction.minus)):
        for term in terms:
            side = 1 if term["activation"] == "sigmoid" else -1
            assert sign * side * term.get("weight", 1.0) == pytest.approx(weights[term["n_layer"]], abs=5e-4)
