"""A run whose training steps are compiled, against the same run as written."""

import json
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from errors import Interrupted, UserError
from study.protocol import pick_engine
from training.device import compiled, uncompiled
from training.loop import train

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def records(folder):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: {k: v for k, v in r.items() if not k.startswith(("time", "perf"))} for r in lines}


@COMPILER
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over its own where they are errors
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_compiled_run_is_the_run_as_written(tiny, tmp_path, stop_at, activation, capsys):
    torch._dynamo.reset()
    counters.clear()
    changes = {"model": {"activation": activation}, "train": {"compile": True}}
    stop_at(9)
    with pytest.raises(Interrupted):
        train(tiny(**changes), tmp_path / "compiled")
    summary = train(tiny(**changes), tmp_path / "compiled")
    assert "warning" not in capsys.readouterr().out
    assert counters["stats"]["unique_graphs"] == 1  # before the stop and after it
    assert not counters["graph_break"]
    plain = train(tiny(model={"activation": activation}), tmp_path / "plain")
    ours, theirs = records(tmp_path / "compiled"), records(tmp_path / "plain")
    assert ours.keys() == theirs.keys()
    for step, record in theirs.items():
        assert record.keys() == ours[step].keys()  # probes and scores among them
        for key in ("train/loss", "val/loss", "grad/norm"):
            if key in record:
                assert ours[step][key] == pytest.approx(record[key], abs=1e-4)
    assert summary["environment"] == plain["environment"] | {"compiled": True}


def test_modules_are_compiled_only_where_it_is_said():
    seen = []

    def backend(graph, _inputs):
        seen.append(graph)
        return graph.forward

    layer, x = Double(), torch.ones(1, 3)
    layer.compile(backend=backend)
    with uncompiled(True):
        layer(x)
        assert not seen
        with compiled(True):
            layer(x)
        assert len(seen) == 1


def test_without_a_compiler_a_compiled_run_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no no-such-compiler"):
        train(tiny(train={"compile": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiled_runs_are_not_stacked(tiny, monkeypatch):
    runs = [tiny(train={"compile": True})]
    with pytest.raises(UserError, match="does not go with stacked runs"):
        pick_engine("stacked", runs)
    monkeypatch.setattr("study.protocol.pick_device", lambda _: torch.device("cuda"))
    assert pick_engine("auto", runs) == "processes"
