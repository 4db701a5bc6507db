import json
import math

import pytest

from errors import UserError
from model.activations import ACTIVATIONS
from study.judge.arms import make_arms
from study.judge.results import load_study
from study.plan.config import StudyConfig
from study.plan.grid import expand, study_config
from study.plan.tuning import arm_of, arms, best_lr, extension, tuning_runs
from study.run.protocol import run_study
from training.config import read_toml
from training.config import tree as plain

TREE = {
    "model": {"activation": ["relu", "gelu"], "n_layer": [1, 2]},
    "train": {"seed": [0, 1], "tokens": 1001},
    "study": {"lr": [0.1, 0.2, 0.4], "tune_seeds": [7, 8], "tune_share": 0.25},
}


def test_an_arm_is_a_run_without_its_seed():
    compared = arms(TREE, "it")
    assert list(compared) == ["relu-n_layer1", "relu-n_layer2", "gelu-n_layer1", "gelu-n_layer2"]
    for name, (config, _) in compared.items():
        assert arm_of(config, compared) == name


def test_each_grid_tunes_on_its_own_rates():
    slow = {"train": {"optimizer": "sgd"}, "study": {"lr": [1.0, 2.0, 4.0]}}
    compared = arms(TREE | {"grid": [{"train": {"optimizer": "adamw"}}, slow]}, "it")
    assert {run.train.optimizer: study.lr for run, study in compared.values()} == {
        "adamw": (0.1, 0.2, 0.4),
        "sgd": (1.0, 2.0, 4.0),
    }
    assert {study.tune_seeds for _, study in compared.values()} == {(7, 8)}


def test_tuning_runs_take_a_share_of_the_budget_on_seeds_of_their_own():
    study = study_config(TREE, "it")
    trials = tuning_runs("relu-n_layer1", *arms(TREE, "it")["relu-n_layer1"], study.lr)
    assert list(trials)[:3] == ["relu-n_layer1-lr0.1-seed7", "relu-n_layer1-lr0.1-seed8", "relu-n_layer1-lr0.2-seed7"]
    assert {(lr, run.train.lr) for lr, run in trials.values()} == {(0.1, 0.1), (0.2, 0.2), (0.4, 0.4)}
    assert {run.train.seed for _, run in trials.values()} == {7, 8}
    assert {run.train.tokens for _, run in trials.values()} == {251}
    assert all(run.train.eval_every == run.train.probes == 0 for _, run in trials.values())
    long = tuning_runs("x" * 255, *arms(TREE, "it")["relu-n_layer1"], study.lr)
    assert len(long) == len(trials)
    assert {len(name) for name in long} == {255}


def test_the_best_rate_is_that_of_the_lowest_mean_and_finished_everywhere():
    assert best_lr({0.1: [3.0, 3.2], 0.2: [2.9, 3.1], 0.4: [2.0, math.inf]}) == 0.2
    assert best_lr({0.1: [math.inf], 0.2: [math.inf]}) is None


@pytest.mark.parametrize(
    ("grid", "best", "more"),
    [
        ((1, 2, 4), 2, None),
        ((1, 2, 4), 4, 8),
        ((1, 2, 4, 4), 4, 8),
        ((4, 1, 2), 1, 0.5),
        ((1e-3, 3e-3, 1e-2), 1e-2, 0.0333),
    ],
)
def test_a_grid_grows_beyond_the_edge_by_its_own_ratio(grid, best, more):
    assert extension(grid, best) == more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": {"lr": [0.1, 0.2]}}, "3 different values"),
        ({"study": {"lr": [1e-3, 1.0000001e-3, 2e-3]}}, "3 different values"),
        ({"study": {"lr": [1e-3, 2e-3, 4e-3, 4.0000001e-3]}}, "different values"),
        ({"study": {"lr": [0.1, 0.2, 0.4], "tune_seeds": [7, 7]}}, "tune_seeds = [7, 7]: each seed once."),
        ({"study": {"lr": [0.1, 0.2, -1]}}, "study.lr.2 = -1: input should be greater than 0"),
        ({"study": {"lr": [0.1, 0.2, 0.4], "tune_seeds": [0]}}, "fresh seeds"),
        ({"study": {"lr": [0.1, 0.2, 0.4], "tune_seeds": [2**63]}}, f"tune_seeds.0 = {2**63}: input"),
        ({"study": {"lr": [0.1, 0.2, 0.4]}, "train": {"lr": [1, 2]}}, "drop one of the two"),
        ({"study": {"refrence": "relu"}}, "Did you mean 'reference'"),
        ({"study": {"tune_share": 2}}, "study.tune_share = 2"),
        ({"study": {"reference": "rellu"}, "model": {"activation": ["relu", "silu"]}}, "Did you mean 'relu'?"),
        ({"study": {"reference": "gelu"}, "model": {"activation": ["relu", "silu"]}}, "Allowed: relu, silu."),
        ({"study": {"reference": "lr=0.2"}, "train": {"lr": [0.1, 1]}}, "Allowed: gelu, lr=0.1, lr=1.0."),
        ({"study": {"reference": "seed=1"}, "train": {"seed": [1, 2]}}, "Allowed: gelu."),
    ],
)
def test_a_study_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError) as error:
        study_config(change, "it")
    assert message in str(error.value)


def test_a_reference_is_an_activation_or_another_value_that_varies():
    tree = {"model": {"activation": ["relu", "silu"]}, "train": {"optimizer": ["adamw", "sgd"]}}
    for reference in ("relu", "silu", "optimizer=sgd"):
        assert study_config(tree | {"study": {"reference": reference}}, "it").reference == reference
    assert study_config(tree, "it").reference == "gelu"  # not asked for, so the first takes its place


def test_no_grid_is_no_tuning():
    assert study_config({"train": {"seed": [1, 2]}}, "it") == StudyConfig()


@pytest.fixture
def tuned(tiny):
    tree = plain(tiny(train={"tokens": 16 * 4 * 10}))
    tree["model"]["activation"] = ["relu", "gelu"]
    tree["train"]["seed"] = [0, 1]
    return tree | {"study": {"lr": [1e-4, 3e-4, 1e-3], "tune_share": 0.5}}


def test_each_arm_trains_fresh_seeds_at_the_best_rate_of_its_own_tuning(tuned, tmp_path):
    assert run_study(tuned, tmp_path / "study") == []
    trials = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "study" / "tune").glob("*/summary.json")}
    rates = {name: read_toml(tmp_path / "study" / "tune" / name / "config.toml")["train"]["lr"] for name in trials}
    for arm in ("relu", "gelu"):
        mine = [name for name in trials if name.startswith(arm)]
        # so short a run gains from any higher rate: the grid grows by its two extensions
        assert sorted(rates[name] for name in mine) == [1e-4, 3e-4, 1e-3, 0.00333, 0.0111]
        best = min(mine, key=lambda name: trials[name]["val/loss"])
        for seed in (0, 1):
            config = read_toml(tmp_path / "study" / f"{arm}-seed{seed}" / "config.toml")["train"]
            assert (config["lr"], config["seed"]) == (rates[best], seed)
    found = make_arms(load_study([tmp_path / "study"]))  # the table knows of all of it
    assert [sorted(arm.tuned()) for arm in found] == [[1e-4, 3e-4, 1e-3, 0.00333, 0.0111]] * 2
    assert [arm.edge for arm in found] == [True, True]


def test_a_rate_that_diverged_is_tried_once(tuned, tmp_path, capfd):
    tuned["model"]["activation"], tuned["study"]["lr"] = ["relu"], [1e-3, 1e29, 1e30]
    run_study(tuned, tmp_path / "study")
    # in the first of two rounds: the best lies at the low edge
    assert capfd.readouterr().out.count("lr1e+30-seed1000 failed") == 1


def test_a_study_of_which_no_arm_can_be_tuned_says_which_failed(tuned, tmp_path):
    tuned["study"]["lr"] = [1e30, 1e31, 1e32]
    assert run_study(tuned, tmp_path / "study") == ["relu-seed0", "relu-seed1", "gelu-seed0", "gelu-seed1"]


def test_a_tuned_study_of_one_arm_is_called_by_its_activation():
    tree = {"model": {"activation": "silu"}, "study": {"lr": [0.1, 0.2, 0.4]}}
    assert list(arms(tree, "it")) == ["silu"]


def test_its_folder_is_one_whatever_a_plugin_calls_it(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "my/act", ACTIVATIONS["silu"])
    tree = {"model": {"activation": "my/act"}, "study": {"lr": [0.1, 0.2, 0.4]}}
    assert list(arms(tree, "it")) == list(expand(tree, "it")) == ["my_act"]
