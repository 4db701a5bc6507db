"""Claims as they are read from TOML; what the runs say of them is in test_claims.py."""

import re
import tomllib
from typing import Any

import pytest
from helpers import CLAIM, ROOT, plan, write_plan

from errors import UserError
from model.plugin import load_plugin
from study.plan.estimate import prepare_arms
from study.plan.metrics import check_metrics
from study.plan.plan import claims_in, make_plan, read_plan
from study.run.protocol import run_plan
from training.config import tree as plain

CONFIGS = ROOT / "configs"
SHIPPED = [*sorted((CONFIGS / "claims").glob("*.toml")), CONFIGS / "anatomy.toml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.usefixtures("registry")
def test_a_shipped_claim_speaks_of_arms_that_its_study_has(path):
    load_plugin(ROOT / "configs" / "anatomy.py")
    load_plugin(ROOT / "configs" / "claims" / "repair.py")
    made = read_plan(path, {})
    assert made.claim is not None
    assert path.stem.startswith(made.claim.name.lower())
    assert all(arm.study.bracket == 3 for arm in made.arms.values() if arm.study.lr)
    assert len(made.claim.prediction) == len(made.tree["prediction"])
    assert all(len(arm.runs) == 5 for arm in made.arms.values())  # seeds


def test_the_claim_about_gates_shares_every_run_with_the_one_about_quality():
    quality, gates = (read_plan(CONFIGS / "claims" / f"{name}.toml", {}) for name in ("c3-quality", "c5-gates"))
    assert gates.runs.items() <= quality.runs.items()
    assert all(quality.arms[name] == arm for name, arm in gates.arms.items())


def test_the_claim_that_the_docs_show_can_be_trained():
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "claims.md").read_text(), re.DOTALL)
    made = make_plan(tomllib.loads(block))
    assert made.claim is not None
    assert [prediction.aside for prediction in made.claim.prediction] == [False, True]
    assert len(made.runs) == 10


def test_a_claim_is_read_with_its_predictions_and_defaults():
    claim = make_plan(plan({"predicts": "above", "at": 0}, {"predicts": "below", "aside": True})).claim
    assert claim is not None
    assert (claim.name, claim.told) == (CLAIM["name"], CLAIM["told"])
    first, second = claim.prediction
    assert (first.predicts, first.at, first.margin, first.aside) == ("above", 0, 0.01, False)
    assert (second.plus, second.minus) == (({"activation": "sigmoid"},), ({"activation": "gelu"},))
    assert make_plan({"model": {"activation": ["gelu", "relu"]}}).claim is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plus": [{"activation": "relu"}]}, "describes 0 arms"),
        ({"plus": [{"n_layer": 4}]}, "describes 2 arms"),
        ({"plus": [{"activashun": "relu"}]}, "Did you mean 'activation'"),
        ({"predicts": "abov"}, r"prediction 1\.predicts: unknown predicts 'abov'\. Did you mean 'above'"),
        ({"metrik": "val/loss"}, "Did you mean 'metric'"),
        ({"at": 2}, r"prediction 1\.at = 2"),
        ({"plus": [{"activation": "sigmoid", "at": "early"}]}, "at = 'early'"),
        ({"aside": True}, "no aside"),
        ({"plus": []}, "plus is empty"),
        ({"predicts": "not above"}, r"unknown predicts 'not above'"),
        ({"margin": 0.0}, r"prediction 1\.margin = 0\.0"),
        ({"plus": [{"activation": "sigmoid"}, {"activation": "gelu"}]}, "of plus sum to 2, those of minus to 1"),
        ({"plus": [{"activation": "sigmoid", "weight": 0.5}]}, r"of plus sum to 0\.5, those of minus to 1"),
        ({"plus": [{"activation": "sigmoid", "weight": 0}]}, "weight = 0: input should be greater than 0"),
    ],
)
def test_a_prediction_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_plan(plan({"predicts": "above"} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"activation": "gelu"}, "train": {}}, "this is a single run"),
        ({"claim": CLAIM | {"name": "a/b"}}, r"claim\.name = 'a/b'"),
        ({"claim": {key: value for key, value in CLAIM.items() if key != "told"}}, r"it:\n  claim\.told: is missing"),
    ],
)
def test_a_claim_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_plan(plan({"predicts": "above"}) | change, "it")


def test_a_prediction_needs_a_claim_and_a_claim_a_name_of_its_own(tmp_path):
    tree = plan({"predicts": "above"})
    with pytest.raises(UserError, match="without a"):
        make_plan({name: part for name, part in tree.items() if name != "claim"})
    for name in ("c1", "c2"):
        write_plan(tmp_path / name, **tree)
    write_plan(tmp_path / "other", model={"activation": ["of-a-plugin-that-is-not-loaded"]})
    with pytest.raises(UserError, match="two claims have the name C0"):
        claims_in(tmp_path)
    assert list(claims_in(tmp_path / "c1")) == [tmp_path / "c1"]


def test_a_claim_about_a_plugin_is_read_from_a_results_folder_without_the_plugin(tmp_path):
    tree = plan({"predicts": "above", "plus": [{"activation": "mine"}]}, activations=("mine", "gelu"))
    write_plan(tmp_path / "c1", **tree)
    (claim,) = claims_in(tmp_path).values()
    assert claim.prediction[0].plus == ({"activation": "mine"},)


def test_a_prediction_whose_arms_have_other_seeds_is_refused():
    tree = plan({"predicts": "above"})
    tree["grid"] = [{"model": {"activation": "sigmoid"}, "train": {"seed": [0, 1]}}, {"model": {"activation": "gelu"}}]
    with pytest.raises(UserError, match=r"the seeds of its arms do not pair: \[0, 1\] and \[0, 1, 2, 3, 4\]"):
        make_plan(tree)


def test_a_prediction_about_a_metric_that_no_run_writes_is_refused_before_training(tiny, tmp_path):
    changed: dict[str, Any] = plain(tiny()) | {"claim": CLAIM}
    changed["model"]["activation"] = ["sigmoid", "gelu"]
    for metric, known in (
        ("act/blocks.*/mean_share", True),
        ("path/blocks.*/down_efficiency", True),
        ("act/blocks.*/mean_shar", False),
    ):
        one = plan({"predicts": "above", "metric": metric})["prediction"]
        made = make_plan(changed | {"prediction": one})
        if known:
            check_metrics(made, prepare_arms(made))
            continue
        with pytest.raises(UserError, match=r"unknown metric 'act/blocks.\*/mean_shar'. Did you mean 'act/blocks"):
            run_plan(made, tmp_path / "study")
        assert not [*tmp_path.glob("study/*/config.toml")]
