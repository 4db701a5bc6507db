"""What --dry_run says of a study before it is trained."""

import re

import pytest
import torch

from model.size import size
from study.plan.estimate import Seconds, dry_run, prepare_arms, size_lines
from study.plan.plan import make_plan
from study.run.search import left_to_train


@pytest.fixture
def tree(corpus):
    """A study of two arms with three seeds each."""
    model = {"activation": ["gelu", "silu"], "n_layer": 1, "n_head": 2, "d_model": 16, "context": 16}
    train = {"seed": [0, 1, 2], "tokens": 3200, "batch_size": 4, "eval_every": 20, "device": "cpu"}
    return {"data": {"corpus": str(corpus), "tokenizer": "bytes"}, "model": model, "train": train}


@pytest.mark.parametrize("cores", [1, 2, 32])
def test_the_hours_are_those_of_all_runs_by_the_number_at_a_time(tree, tmp_path, monkeypatch, capsys, cores):
    monkeypatch.setattr("study.plan.engine.cores", lambda: cores)
    plan = make_plan(tree | {"study": {"lr": [1e-3, 2e-3, 4e-3], "tune_share": 0.5, "engine": "ray"}}, "it")
    # A run has 50 steps and 5 scores (steps 0, 20, 40, the last, and the test split); a tuning run has 25 and 2.
    run, tuning = 10 + 50 * 2 + 5 * 5, 10 + 25 * 2 + 2 * 5
    counted = set()
    left = left_to_train(plan, tmp_path)
    hours = dry_run(plan, left, counted, lambda *_: Seconds(10.0, 2.0, 5.0))
    at_a_time = min(cores, 6)
    assert hours == pytest.approx((18 * run + 6 * tuning) / at_a_time / 3600)
    said = capsys.readouterr().out
    assert "gelu: 3 tuning runs and 9 runs to train, 32 tokens/s" in said
    assert f"estimated time of it: {hours:.2f} h, {at_a_time} runs at a time on this machine alone" in said
    assert dry_run(plan, left, counted, lambda *_: Seconds(10.0, 2.0, 5.0)) == 0


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), (0, 2)])
def test_steps_are_timed_on_the_threads_that_a_run_has(tree, tmp_path, monkeypatch, request, threads, expected):
    request.addfinalizer(lambda: torch.set_num_threads(1))  # as conftest.py sets it
    monkeypatch.setattr("study.plan.engine.cores", lambda: 12)
    tree["train"]["threads"] = threads
    plan = make_plan(tree)
    assert dry_run(plan, left_to_train(plan, tmp_path), set()) > 0
    assert torch.get_num_threads() == expected


def test_each_network_has_a_line_that_its_arm_names(tree):
    tree["model"] |= {"activation": ["gelu", "swiglu"], "n_layer": [1, 2]}
    tree["train"]["optimizer"] = ["adamw", "sgd"]
    plan = make_plan(tree)
    data = prepare_arms(plan)
    lines = size_lines(plan, data)
    found = re.findall(r"^ *(.+?)  +([\d,]+) parameters", "\n".join(lines), re.MULTILINE)
    labels, totals = zip(*found, strict=True)
    # Unlike networks have unlike names, and the arms of one network share its line.
    assert labels == (
        "gelu-n_layer1-optimizeradamw and 1 more",
        "gelu-n_layer2-optimizeradamw and 1 more",
        "swiglu-n_layer1-optimizeradamw and 1 more",
        "swiglu-n_layer2-optimizeradamw and 1 more",
    )
    arms = [plan.arms[label.removesuffix(" and 1 more")].config.model for label in labels]
    expected = [size(model, next(iter(data.values())).tokenizer.n_vocab).total for model in arms]
    assert [int(text.replace(",", "")) for text in totals] == expected
