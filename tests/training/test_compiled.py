"""A run whose training steps are compiled, against the same run as written."""

import json
import math
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from errors import Interrupted, UserError
from model import gpt
from study.plan.engine import pick_engine
from training import loop
from training.loop import train

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def records(folder):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: {k: v for k, v in r.items() if not k.startswith(("time", "perf"))} for r in lines}


@COMPILER
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over its own where they are errors
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_compiled_run_is_the_run_as_written(tiny, tmp_path, stop_at, activation, capsys, monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    head_loss, as_written = gpt.head_loss, []

    def of_head(*arguments):
        if not torch.compiler.is_compiling():
            as_written.append(arguments)
        return head_loss(*arguments)

    monkeypatch.setattr(gpt, "head_loss", of_head)
    changes = {"model": {"activation": activation}, "train": {"compile": True}}
    stop_at(9)
    with pytest.raises(Interrupted):
        train(tiny(**changes), tmp_path / "compiled")
    summary = train(tiny(**changes), tmp_path / "compiled")
    assert "warning" not in capsys.readouterr().out
    assert counters["stats"]["unique_graphs"] == 1  # before the stop and after it
    assert not counters["graph_break"]
    assert not as_written
    plain = train(tiny(model={"activation": activation}), tmp_path / "plain")
    ours, theirs = records(tmp_path / "compiled"), records(tmp_path / "plain")
    assert ours.keys() == theirs.keys()
    for step, record in theirs.items():
        assert record.keys() == ours[step].keys()  # probes and scores among them
        for key in ("train/loss", "val/loss", "grad/norm"):
            if key in record:
                assert ours[step][key] == pytest.approx(record[key], abs=1e-4)
    assert summary["environment"] == plain["environment"] | {"compiled": True}


@COMPILER
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_repeats_bit_for_bit(tiny, tmp_path, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))  # as conftest.py sets it
    changes = {"model": {"d_model": 64}, "train": {"compile": True, "threads": 2}}  # whose order is chance
    for name in ("once", "again"):
        train(tiny(**changes), tmp_path / name)
    assert records(tmp_path / "once") == records(tmp_path / "again")


@COMPILER
@pytest.mark.filterwarnings("ignore")
def test_where_a_compiled_step_ceased_to_be_finite_is_named(tiny, tmp_path, monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    take = loop.train_step

    def step(model, optimizers, tokens_N, config, number, *others):
        if number == 2:
            model.get_parameter("blocks.1.ffn.up.weight").data[0, 0] = math.inf
        return take(model, optimizers, tokens_N, config, number, *others)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(FloatingPointError, match=r"at step 3; .* is the output of blocks\.1\.ffn\.up\."):
        train(tiny(train={"compile": True}), tmp_path / "run")
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
