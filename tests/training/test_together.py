"""Runs trained together: each folder as if its run had been alone."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers import records
from safetensors.torch import load_file

from errors import Interrupted
from training import loop, together
from training.config import WandbConfig, to_toml
from training.loop import train
from training.together import shape, train_together

STEPS = 50


@pytest.fixture(autouse=True)
def no_sample(monkeypatch):
    """The text that a run ends with takes longer than these runs."""
    monkeypatch.setattr(loop, "sample_of", lambda *_: "text")


@pytest.fixture
def runs(tiny, tmp_path):
    """Return a function from settings to three runs that differ in seed and learning rate, by folder."""

    def make(activation="gelu", lrs=(1e-3, 3e-3, 2e-3), **train):
        model = {"n_layer": 1, "d_model": 16, "context": 8, "activation": activation}
        train = {"tokens": 8 * 4 * STEPS, "log_every": 1, "probes": 7, "checkpoint_every": 20, "eval_every": 25} | train
        return {
            tmp_path / "together" / f"seed{seed}": tiny(model=model, train=train | {"seed": seed, "lr": lr})
            for seed, lr in enumerate(lrs)
        }

    return make


def alone(runs):
    """Train each run by itself and return the folders, in the same order."""
    folders = [folder.parent.parent / "alone" / folder.name for folder in runs]
    for folder, config in zip(folders, runs.values(), strict=True):
        train(config, folder)
    return folders


def losses(folder):
    return [r[key] for r in records(folder) for key in ("train/loss", "val/loss") if key in r]


def form(folder):
    """All of a run's folder but its numbers: files, keys of every record, shapes and types of every tensor."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name not in (".lock", "log.txt"))
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    tensors = load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")
    state = json.loads((newest / "state.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    windows = np.load(folder / "val_windows.npy")
    return (
        files,
        (folder / "config.toml").read_text(),
        [sorted(record) for record in records(folder)],
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        tensors["rng.cpu"].tolist(),
        {name: type(value) for name, value in state.items()}
        | {"environment": state["environment"] | {"commit": "", "stacked": None}},
        {name: type(value) for name, value in summary.items()},
        (windows.shape, windows.dtype),
    )


@pytest.mark.parametrize(
    ("activation", "train"),
    [
        ("swiglu", {"optimizer": "muon"}),
        ("prelu", {"optimizer": "adamw", "clip": 0.3}),
        ("gelu", {"optimizer": "sgd", "accumulate": 2, "nonfinite": "skip"}),
    ],
)
def test_runs_trained_together_are_those_trained_alone(runs, activation, train, monkeypatch):
    # Muon's products in fp32: in bf16 their order decides a last bit, and that a hundredth of an update's norm
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    made = runs(activation, **train)
    summaries = train_together(made)
    lonely = alone(made)
    for folder, other in zip(made, lonely, strict=True):
        assert len(losses(folder)) > STEPS
        assert losses(folder) == pytest.approx(losses(other), abs=1e-4)
        assert form(folder) == form(other)
        windows = np.load(folder / "val_windows.npy")
        np.testing.assert_allclose(windows, np.load(other / "val_windows.npy"), atol=1e-3)
        assert summaries[folder] == json.loads((folder / "summary.json").read_text())
        probed, expected = (next(r for r in records(f) if r["step"] == STEPS) for f in (folder, other))
        for key in ("path/blocks.0/up_efficiency", "act/blocks.0/slope", "update/blocks.0.attn.qkv/reach"):
            assert probed[key] == pytest.approx(expected[key], rel=1e-4)
    assert losses(lonely[0]) != pytest.approx(losses(lonely[1]), abs=1e-2)


def test_muon_s_products_in_bf16_keep_the_losses(runs):
    made = runs("swiglu", optimizer="muon")
    train_together(made)
    for folder, other in zip(made, alone(made), strict=True):
        assert losses(folder) == pytest.approx(losses(other), abs=1e-4)


def test_bf16_stacks_too(runs):
    made = runs("swiglu", precision="bf16", tokens=8 * 4 * 10)
    assert all(train_together(made).values())
    for folder, other in zip(made, alone(made), strict=True):
        assert losses(folder) == pytest.approx(losses(other), abs=2e-2)
        assert form(folder) == form(other)


def test_a_signal_stops_all_at_one_step_and_either_engine_goes_on(runs, stop_at, capsys, tmp_path):
    made = runs(tokens=8 * 4 * 20)
    train_together(made)
    whole = {folder: (records(folder), losses(folder)) for folder in made}
    for folder in made:
        folder.rename(tmp_path / folder.name)
    stop_at(7, signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        train_together(made)
    assert stopped.value.code == 130
    assert [[p.name for p in (folder / "checkpoints").iterdir()] for folder in made] == [["step-00000008"]] * 3
    assert all("stopped at step 8 of 20" in (folder / "log.txt").read_text() for folder in made)
    first, *others = made
    stop_at(12)
    with pytest.raises(Interrupted):
        train_together(made)
    assert "bitwise" not in (first / "log.txt").read_text()
    capsys.readouterr()
    train(made[first], first)  # by itself
    assert "stacked was True, is False: not bitwise the same from here on" in capsys.readouterr().out
    assert losses(first) == pytest.approx(whole[first][1], abs=1e-4)
    train_together({folder: made[folder] for folder in others})
    for folder in others:
        assert losses(folder) == pytest.approx(whole[folder][1], abs=1e-4)


def test_stopped_and_resumed_together_is_never_stopped_bit_for_bit(runs, stop_at, tmp_path):
    made = runs("prelu", tokens=8 * 4 * 20)
    train_together(made)
    whole = [records(folder) for folder in made]
    for folder in made:
        folder.rename(tmp_path / folder.name)
    for step in (7, 13):
        stop_at(step)
        with pytest.raises(Interrupted):
            train_together(made)
    train_together(made)
    assert [records(folder) for folder in made] == whole


def test_a_run_that_lags_catches_up_and_a_finished_one_is_left_alone(runs, stop_at, tmp_path):
    made = runs(tokens=8 * 4 * 20)
    lonely = alone(made)
    first, second, _ = made
    train(made[first], first)
    before = (first / "metrics.jsonl").stat().st_mtime_ns
    stop_at(4)
    with pytest.raises(Interrupted):
        train(made[second], second)
    assert all(train_together(made).values())
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    for folder, other in zip(made, lonely, strict=True):
        assert losses(folder) == pytest.approx(losses(other), abs=1e-4)


def test_a_run_that_goes_on_without_the_others_says_that_it_was_stacked(runs, stop_at):
    made = dict(list(runs(tokens=8 * 4 * 20).items())[:2])
    first, second = made
    stop_at(8)
    with pytest.raises(Interrupted):
        train_together(made)
    train(made[first], first)
    train_together(made)
    assert "stacked was True, is False: not bitwise the same" in (second / "log.txt").read_text()


def test_a_run_that_fails_says_why_and_leaves_the_others(runs, tmp_path, corpus):
    made = runs(lrs=(1e-3, 1e30, 2e-3), tokens=8 * 4 * 20, warmup=0.0)
    taken = tmp_path / "together" / "taken"
    made[taken] = dataclasses.replace(next(iter(made.values())), wandb=WandbConfig(project="another"))
    taken.mkdir(parents=True)
    (taken / "thesis.tex").write_text("years of work")
    good, wild, other, _ = made
    summaries = train_together(made)
    assert [folder for folder, summary in summaries.items() if summary is None] == [wild, taken]
    with pytest.raises(FloatingPointError) as error:
        train(made[wild], tmp_path / "wild")
    step = str(error.value).partition(" at ")[2].partition(";")[0]  # where it began is decided by the last digits
    assert f" at {step}; the first that is not finite is the " in (wild / "log.txt").read_text().splitlines()[-1]
    assert "is not a run" in (taken / "log.txt").read_text()
    for folder in (good, other):
        train(made[folder], tmp_path / folder.name)
        assert losses(folder) == pytest.approx(losses(tmp_path / folder.name), abs=1e-4)


def test_more_runs_than_memory_holds_go_one_stack_after_another(runs, monkeypatch):
    sizes, make = [], together.Stack

    def stack(models, config):
        sizes.append(len(models))
        return make(models, config)

    monkeypatch.setattr(together, "room", lambda *_: 2)
    monkeypatch.setattr(together, "Stack", stack)
    made = runs(tokens=8 * 4 * 5, lrs=(1e-3, 2e-3, 3e-3, 4e-3, 5e-3))
    assert all(train_together(made).values())
    assert sizes == [2, 2]  # and one alone


def test_a_signal_at_the_end_of_a_stack_stops_before_the_next(runs, monkeypatch):
    def text(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(loop, "sample_of", lambda *_: "text")
        return "text"

    monkeypatch.setattr(together, "room", lambda *_: 1)
    monkeypatch.setattr(loop, "sample_of", text)
    made = runs(tokens=8 * 4 * 5, lrs=(1e-3, 2e-3))
    with pytest.raises(Interrupted) as stopped:
        train_together(made)
    assert stopped.value.code == 143
    assert [folder.exists() for folder in made] == [True, False]
    assert all(train_together(made).values())


def test_runs_stack_that_differ_in_seed_and_learning_rate_alone(tiny):
    config = tiny()
    for other in (tiny(train={"seed": 7}), tiny(train={"lr": 0.5}), tiny(train={"keep": 9})):
        assert shape(other) == shape(config)
    changes = [{"model": {"activation": "relu"}}, {"train": {"tokens": 99}}, {"train": {"clip": 0.5}}]
    for change in [*changes, {"data": {"tokenizer": "bpe:300"}}, {"train": {"device": "cpu"}}]:
        assert shape(tiny(**change)) != shape(config), to_toml(tiny(**change))
    assert torch.get_num_threads() == 1
