import re
from pathlib import Path

import pytest

from errors import UserError
from study.plan.config import merge
from study.plan.grid import axes, expand, is_study, points, run_name


def test_lists_make_every_combination_once_and_in_order():
    tree = {"model": {"activation": ["relu", "gelu"]}, "train": {"seed": [1, 2], "lr": [0.1]}}
    runs = expand(tree, "it")
    assert list(runs) == ["relu-seed1-lr0.1", "relu-seed2-lr0.1", "gelu-seed1-lr0.1", "gelu-seed2-lr0.1"]
    assert (runs["gelu-seed2-lr0.1"].model.activation, runs["gelu-seed2-lr0.1"].train.seed) == ("gelu", 2)


@pytest.mark.parametrize("values", [[], ["relu", "relu"]])
def test_a_list_needs_values_and_each_once(values):
    with pytest.raises(UserError, match="each once"):
        axes({"model": {"activation": values}})


def test_where_a_run_runs_is_no_axis():
    with pytest.raises(UserError, match=r"train\.compile = \[False, True\]: where a run runs tells it from no other"):
        axes({"train": {"compile": [False, True]}})


def test_run_names_are_safe_as_folders():
    name = run_name({("data", "corpus"): "../../etc/passwd", ("model", "activation"): "relu"})
    assert name == "relu-corpus.._.._etc_passwd"
    assert Path(name).name == name


def test_a_run_name_that_no_folder_could_have_is_shortened_and_stays_unique():
    corpora = ["/home/" + "ü" * 200 + name for name in ("a.txt", "b.txt")]
    names = list(expand({"data": {"corpus": corpora}, "model": {"activation": "relu"}}, "it"))
    assert len(set(names)) == 2
    assert all(name.startswith("corpus_home_ü") and len(name.encode()) <= 255 for name in names)
    assert run_name({("data", "corpus"): "x" * 249}) == "corpus" + "x" * 249


GRIDS = """
[model]
n_layer = 1
[train]
seed = [0, 1]
[[grid]]
model.activation = ["relu", "gelu"]
model.n_layer = [1, 2]
[[grid]]
model.activation = "gelu"
model.d_model = 64
train.seed = 5
[[grid]]
model.activation = "gelu"
model.n_layer = 2
"""


def test_several_grids_lie_over_what_they_share(tmp_path):
    path = tmp_path / "grids.toml"
    path.write_text(GRIDS)
    tree = merge(path, {})
    assert is_study(tree)
    runs = expand(tree, "it")
    # the third grid's runs are in the first already
    first = {f"{a}-n_layer{n}-seed{s}" for a in ("relu", "gelu") for n in (1, 2) for s in (0, 1)}
    assert set(runs) == first | {"gelu-d_model64-seed5"}
    assert (runs["gelu-d_model64-seed5"].model.n_layer, runs["gelu-d_model64-seed5"].train.seed) == (1, 5)
    assert [point for point, _ in points(tree)][8] == {
        ("model", "activation"): "gelu",
        ("model", "d_model"): 64,
        ("train", "seed"): 5,
    }


def test_a_flag_stands_above_every_grid(tmp_path):
    path = tmp_path / "grids.toml"
    path.write_text(GRIDS)
    tree = merge(path, {"model": {"n_layer": 3, "d_model": 96}, "train": {"seed": 9}})
    assert list(expand(tree, "it")) == ["relu", "gelu"]
    assert {(r.model.n_layer, r.model.d_model, r.train.seed) for r in expand(tree, "it").values()} == {(3, 96, 9)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = 1", "written as [[grid]]"),
        ("[grid]\nmodel.n_layer = 1", "written as [[grid]]"),
        ("grid = []", "written as [[grid]]"),
        ("[stduy]\nlr = [1, 2, 4]", "unknown section 'stduy'. Did you mean 'study'? Allowed: data,"),
        ("[[grids]]\nmodel.n_layer = 1", "Did you mean 'grid'?"),
        ("[[predictions]]\nx = 1", "Did you mean 'prediction'?"),
        ("[claims]\nx = 1", "Did you mean 'claim'?"),
        ("[[grid]]\nstduy.lr = [1, 2, 4]", "Did you mean 'study'?"),
        ("[[grid]]\nn_layer = 1", "such as model.n_layer"),
        ("[[grid]]\ntrain.threads = 1", "train.threads is one for all runs"),
        ('[[grid]]\nstudy.reference = "relu"', "study.reference is one for all runs"),
        ("[[grid]]\nmodel.n_layers = 1", "Did you mean 'n_layer'"),
        ("[[grid]]\nmodle.n_layer = 1", "Did you mean 'model'"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, text, message):
    path = tmp_path / "grids.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        expand(merge(path, {}), "it")
