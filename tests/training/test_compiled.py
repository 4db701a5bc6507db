"""Runs whose training steps are compiled, against the same runs as written."""

import math
import shutil

import pytest
import torch
from helpers import records, tiny_config
from torch._dynamo.utils import counters

from errors import UserError
from study.plan.engine import pick_engine
from training import loop
from training.loop import train

pytestmark = pytest.mark.usefixtures("no_sample")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
# torch's compiler trips over its own warnings where they are errors.
ignore_warnings = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(corpus):
    """Return a function from settings to a config; two threads may add in any order."""

    def make(**train):
        model = {"n_layer": 1, "d_model": 64, "activation": "swiglu"}
        return tiny_config(
            corpus, model=model, train={"compile": True, "threads": 2, "probes": 5, "tokens": 640} | train
        )

    yield make
    torch.set_num_threads(1)  # as conftest.py sets it


@needs_compiler
@ignore_warnings
def test_a_compiled_run_repeats_bit_for_bit_and_is_the_run_as_written(config, tmp_path, capsys):
    torch._dynamo.reset()
    counters.clear()
    summary = train(config(), tmp_path / "once")
    assert counters["stats"]["unique_graphs"] == 1  # scores, probes and samples are not compiled
    assert not counters["graph_break"]
    train(config(), tmp_path / "again")
    assert "warning" not in capsys.readouterr().out
    assert records(tmp_path / "again") == records(tmp_path / "once")

    plain = train(config(compile=False), tmp_path / "plain")
    for record, expected in zip(records(tmp_path / "once"), records(tmp_path / "plain"), strict=True):
        assert record.keys() == expected.keys()  # probes and scores among them
        for key in {"train/loss", "val/loss", "grad/norm"} & record.keys():
            assert record[key] == pytest.approx(expected[key], abs=1e-4)
    assert summary["environment"] == plain["environment"] | {"compiled": True}


@needs_compiler
@ignore_warnings
def test_where_a_compiled_step_ceased_to_be_finite_is_named(config, tmp_path, monkeypatch):
    take = loop.train_step

    def step(model, optimizers, tokens_N, config, number, *others):
        if number == 2:
            model.get_parameter("blocks.0.ffn.up.weight").data[0, 0] = math.inf
        return take(model, optimizers, tokens_N, config, number, *others)

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(FloatingPointError, match=r"^step 3: .* is the output of blocks\.0\.ffn\.up\."):
        train(config(), tmp_path / "run")
    assert counters["stats"]["unique_graphs"] == 1  # nothing was compiled for the search


def test_without_a_compiler_a_compiled_run_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no no-such-compiler"):
        train(tiny(train={"compile": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiled_runs_are_not_stacked(tiny, monkeypatch):
    runs = [tiny(train={"compile": True})]
    with pytest.raises(UserError, match="does not go with stacked runs"):
        pick_engine("stacked", runs)
    monkeypatch.setattr("study.plan.engine.pick_device", lambda _: torch.device("cuda"))
    assert pick_engine("auto", runs) == "processes"
