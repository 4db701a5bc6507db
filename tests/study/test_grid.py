import re
from pathlib import Path

import pytest

from errors import UserError
from study.plan.config import merge
from study.plan.grid import points, run_name
from study.plan.plan import make_plan


def test_lists_make_every_combination_once_and_in_order():
    plan = make_plan({"model": {"activation": ["relu", "gelu"]}, "train": {"seed": [1, 2], "lr": [0.1]}})
    assert list(plan.runs) == ["relu-seed1-lr0.1", "relu-seed2-lr0.1", "gelu-seed1-lr0.1", "gelu-seed2-lr0.1"]
    run = plan.runs["gelu-seed2-lr0.1"]
    assert (run.model.activation, run.train.seed, run.train.lr) == ("gelu", 2, 0.1)


def test_an_arm_is_a_run_without_its_seed():
    plan = make_plan({"model": {"activation": ["relu", "gelu"], "n_layer": [1, 2]}, "train": {"seed": [3, 4]}})
    assert list(plan.arms) == ["relu-n_layer1", "relu-n_layer2", "gelu-n_layer1", "gelu-n_layer2"]
    for name, arm in plan.arms.items():
        assert list(arm.runs) == [f"{name}-seed3", f"{name}-seed4"]


def test_one_run_has_no_name_and_a_tuned_one_is_called_by_its_activation():
    single = make_plan({"model": {"activation": "silu"}})
    assert (list(single.runs), single.is_study) == ([""], False)
    tuned = make_plan({"model": {"activation": "silu"}, "study": {"lr": [0.1, 0.2, 0.4]}})
    assert (list(tuned.runs), list(tuned.arms), tuned.is_study) == (["silu"], ["silu"], True)


def test_run_names_are_safe_and_short_enough_for_folders_and_stay_unique():
    name = run_name({("data", "corpus"): "../../etc/passwd", ("model", "activation"): "my/relu"})
    assert name == Path(name).name == "my_relu-corpus.._.._etc_passwd"
    corpora = ["/home/" + "ü" * 200 + end for end in ("a.txt", "b.txt")]
    names = list(make_plan({"data": {"corpus": corpora}}).runs)
    assert len(set(names)) == 2
    assert all(name.startswith("corpus_home_ü") and len(name.encode()) <= 255 for name in names)


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


def test_each_grid_lies_over_the_shared_sections_and_flags_over_every_grid(tmp_path):
    path = tmp_path / "grids.toml"
    path.write_text(GRIDS)
    plan = make_plan(merge(path, {}))
    # The runs of the third grid are in the first already.
    first = {f"{a}-n_layer{n}-seed{s}" for a in ("relu", "gelu") for n in (1, 2) for s in (0, 1)}
    assert set(plan.runs) == first | {"gelu-d_model64-seed5"}
    run = plan.runs["gelu-d_model64-seed5"]
    assert (run.model.n_layer, run.train.seed) == (1, 5)
    point, _ = list(points(plan.tree, "it"))[8]
    assert point == {("model", "activation"): "gelu", ("model", "d_model"): 64, ("train", "seed"): 5}
    flags = {"model": {"n_layer": 3, "d_model": 96}, "train": {"seed": 9}}
    runs = make_plan(merge(path, flags)).runs
    assert list(runs) == ["relu", "gelu"]
    assert {(run.model.n_layer, run.model.d_model, run.train.seed) for run in runs.values()} == {(3, 96, 9)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nmodel.n_layer = 1", "written as [[grid]]"),
        ("[stduy]\nlr = [1, 2, 4]", "unknown section 'stduy'. Did you mean 'study'? Allowed: data,"),
        ("[[grids]]\nmodel.n_layer = 1", "Did you mean 'grid'?"),
        ("[[predictions]]\nx = 1", "Did you mean 'prediction'?"),
        ("[[grid]]\nstduy.lr = [1, 2, 4]", "Did you mean 'study'?"),
        ("[[grid]]\nn_layer = 1", "n_layer: every key stands in a section"),
        ('[[grid]]\nstudy.reference = "relu"', "study.reference is one for all runs"),
        ("[[grid]]\nmodel.n_layers = 1", "Did you mean 'n_layer'"),
        ("[model]\nactivation = []", "each once"),
        ('[model]\nactivation = ["relu", "relu"]', "each once"),
        ("[train]\ncompile = [false, true]", "train.compile cannot be a list: it does not change what is trained."),
        ('[data]\ncorpus = ["a/b", "a_b"]', "two arms would share the name"),
        ("[study]\nlr = [0.1, 0.2]", "3 different values"),
        ("[study]\nlr = [1e-3, 2e-3, 4e-3, 4.0000001e-3]", "different values"),
        ("[study]\nlr = [0.1, 0.2, -1]", "study.lr.2 = -1: input should be greater than 0"),
        ("[study]\ntune_seeds = [7, 7]", "tune_seeds = [7, 7]: each seed once."),
        ("[study]\nlr = [0.1, 0.2, 0.4]\ntune_seeds = [0]", "fresh seeds"),
        ("[study]\nlr = [0.1, 0.2, 0.4]\n[train]\nlr = [1, 2]", "drop one of the two"),
        ("[study]\nrefrence = 'relu'", "Did you mean 'reference'"),
        ("[study]\nreference = 'rellu'\n[model]\nactivation = ['relu', 'silu']", "Did you mean 'relu'?"),
        ("[study]\nreference = 'lr=0.2'\n[train]\nlr = [0.1, 1]", "Allowed: gelu, lr=0.1, lr=1.0."),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, text, message):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(merge(path, {}))


def test_a_reference_is_an_activation_or_another_value_that_varies():
    tree = {"model": {"activation": ["relu", "silu"]}, "train": {"optimizer": ["adamw", "sgd"]}}
    for reference in ("relu", "silu", "optimizer=sgd"):
        assert make_plan(tree | {"study": {"reference": reference}}).study.reference == reference
    assert make_plan(tree).study.reference == "gelu"  # not asked for, so the first arm takes its place
