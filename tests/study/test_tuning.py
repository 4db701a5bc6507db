import json
import math

import pytest

from study.judge.arms import make_arms
from study.judge.results import load_study
from study.plan.plan import make_plan
from study.plan.tuning import best_lr, extension, runs_at, shorter
from study.run.protocol import run_study
from training.config import read_toml
from training.config import tree as plain

TREE = {
    "model": {"activation": ["relu", "gelu"], "n_layer": [1, 2]},
    "train": {"seed": [0, 1], "tokens": 1001},
    "study": {"lr": [0.1, 0.2, 0.4], "tune_seeds": [7, 8], "tune_share": 0.25},
}


def test_each_grid_tunes_on_its_own_rates():
    slow = {"train": {"optimizer": "sgd"}, "study": {"lr": [1.0, 2.0, 4.0]}}
    arms = make_plan(TREE | {"grid": [{"train": {"optimizer": "adamw"}}, slow]}).arms.values()
    rates = {arm.config.train.optimizer: arm.study.lr for arm in arms}
    assert rates == {"adamw": (0.1, 0.2, 0.4), "sgd": (1.0, 2.0, 4.0)}
    assert {arm.study.tune_seeds for arm in arms} == {(7, 8)}


def test_tuning_runs_take_a_share_of_the_budget_on_seeds_of_their_own():
    arm = make_plan(TREE).arms["relu-n_layer1"]
    trials = runs_at("relu-n_layer1", shorter(arm), arm.study.lr, arm.study.tune_seeds)
    assert list(trials)[:3] == ["relu-n_layer1-lr0.1-seed7", "relu-n_layer1-lr0.1-seed8", "relu-n_layer1-lr0.2-seed7"]
    assert {(run.train.lr, run.train.seed) for run in trials.values()} == {(l, s) for l in arm.study.lr for s in (7, 8)}
    assert {run.train.tokens for run in trials.values()} == {251}
    assert all((run.train.eval_every, run.train.probes) == (-1, 0) for run in trials.values())
    assert {len(name) for name in runs_at("x" * 255, arm.config, arm.study.lr, [7])} == {255}


def test_the_best_rate_has_the_lowest_mean_and_finished_everywhere():
    assert best_lr({0.1: [3.0, 3.2], 0.2: [2.9, 3.1], 0.4: [2.0, math.inf]}) == 0.2
    assert best_lr({0.1: [math.inf], 0.2: [math.inf]}) is None


@pytest.mark.parametrize(
    ("grid", "best", "further"),
    [((1, 2, 4), 2, None), ((1, 2, 4), 4, 8), ((4, 1, 2), 1, 0.5), ((1e-3, 3e-3, 1e-2), 1e-2, 0.0333)],
)
def test_a_grid_grows_beyond_the_edge_by_its_own_ratio(grid, best, further):
    assert extension(grid, best) == further


@pytest.fixture
def study(tiny):
    tree = plain(tiny(train={"tokens": 16 * 4 * 6}))
    tree["model"]["activation"] = ["relu", "gelu"]
    tree["train"]["seed"] = [0, 1]
    return tree | {"study": {"lr": [1e-4, 3e-4, 1e-3], "tune_share": 0.5, "bracket": 1, "engine": "stacked"}}


def test_each_arm_trains_fresh_seeds_at_the_best_rate_of_its_own_tuning(study, tmp_path):
    assert run_study(study, tmp_path / "study") == []
    trials = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "study" / "tune").glob("*/summary.json")}
    rates = {name: read_toml(tmp_path / "study" / "tune" / name / "config.toml")["train"]["lr"] for name in trials}
    for arm in ("relu", "gelu"):
        mine = [name for name in trials if name.startswith(arm)]
        # So short a run gains from any higher rate, so the grid grows by its two extensions.
        assert sorted(rates[name] for name in mine) == [1e-4, 3e-4, 1e-3, 0.00333, 0.0111]
        best = min(mine, key=lambda name: trials[name]["val/loss"])
        for seed in (0, 1):
            name = f"{arm}-lr{rates[best]:g}-seed{seed}"
            config = read_toml(tmp_path / "study" / name / "config.toml")["train"]
            assert (config["lr"], config["seed"]) == (rates[best], seed)
    arms = make_arms(load_study([tmp_path / "study"]))  # the table knows of all of it
    assert [sorted(arm.losses_by_rate()) for arm in arms] == [[1e-4, 3e-4, 1e-3, 0.00333, 0.0111]] * 2
    assert [arm.edge for arm in arms] == [True, True]


def test_a_rate_that_diverges_is_tried_once_and_without_any_rate_left_the_runs_fail(study, tmp_path, capfd):
    study["model"]["activation"], study["study"]["lr"] = ["relu"], [1e-3, 1e29, 1e30]
    assert run_study(study, tmp_path / "study") == []  # the best rate is at the low edge, so there is a second round
    assert capfd.readouterr().out.count("lr1e+30-seed1000 failed") == 1
    study["study"]["lr"] = [1e30, 1e31, 1e32]
    assert run_study(study, tmp_path / "none") == ["relu"]
