"""Stacked runs: each one's numbers and folder are those of the same run alone."""

import copy
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers import Noisy, records
from safetensors.torch import load_file
from torch import nn

from data.batches import train_batch
from data.dataset import Split
from errors import Interrupted
from model.activations import ACTIVATIONS
from training import loop, run, stack
from training import step as one_step
from training.config import WandbConfig
from training.evaluate import evaluate
from training.loop import train, train_stack
from training.run import Run
from training.stack import Stack, room, shape

pytestmark = pytest.mark.usefixtures("no_sample")
FIVE = ["relu", "gelu", "swiglu", "xielu", "half_frozen"]  # plain, smooth, gated, learnable, plugin


class HalfFrozen(nn.Module):
    """Swish with a slope that stays and an offset that learns."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.offset = nn.Parameter(torch.tensor(0.1))

    def forward(self, u):
        return u * torch.sigmoid(self.slope * u + self.offset)


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "half_frozen", HalfFrozen)
    monkeypatch.setitem(ACTIVATIONS, "noisy", Noisy)


@pytest.fixture
def runs(tiny, tmp_path):
    """Return a function from settings to three configs that differ in seed and learning rate, by folder."""

    def make(activation="gelu", lrs=(1e-2, 3e-3, 2e-3), model=None, **train):
        model = {"n_layer": 1, "d_model": 16, "context": 8, "activation": activation} | (model or {})
        train = {"tokens": 8 * 4 * 12, "log_every": 1, "checkpoint_every": 5, "eval_every": 6, "probes": 3} | train
        data = {"val_fraction": 0.01, "test_fraction": 0.01}
        return {
            tmp_path / "stacked" / f"seed{seed}": tiny(data=data, model=model, train=train | {"seed": seed, "lr": lr})
            for seed, lr in enumerate(lrs)
        }

    return make


def train_alone(runs, folder):
    """Train each run by itself in `folder` and return the folders, in the same order."""
    for path, config in runs.items():
        train(config, folder / path.name)
    return [folder / path.name for path in runs]


def losses(folder):
    return [r[key] for r in records(folder) for key in ("train/loss", "val/loss", "grad/norm") if key in r]


def assert_same_numbers(folder, other, **tolerance):
    """Losses, norms and weights of two runs agree, and so does what the optimisers and probes keep."""
    assert losses(folder) == pytest.approx(losses(other), **tolerance)
    newest = sorted(path.name for path in (other / "checkpoints").iterdir())[-1]
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(path / "checkpoints" / newest / name) for path in (folder, other))
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"rng.cpu"}:
            torch.testing.assert_close(
                ours[key], theirs[key], rtol=1e-2, atol=2e-4, msg=lambda text, k=key: f"{k}: {text}"
            )


@pytest.mark.parametrize("activation", FIVE)
def test_every_kind_of_activation_trains_as_alone(runs, tmp_path, activation):
    # under SGD, unlike AdamW, the size of a gradient is the size of a step
    made = runs(activation, lrs=(1e-2, 3e-3), optimizer="sgd", clip=0.3)
    summaries = train_stack(made)
    alone = train_alone(made, tmp_path)
    for folder, other in zip(made, alone, strict=True):
        assert_same_numbers(folder, other, rel=1e-4)
        assert summaries[folder] == json.loads((folder / "summary.json").read_text())
        windows = np.load(folder / "val_windows.npy")
        np.testing.assert_allclose(windows, np.load(other / "val_windows.npy"), atol=1e-3)
    assert losses(alone[0]) != pytest.approx(losses(alone[1]), abs=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("adamw", {"train": {"accumulate": 2}}),
        ("muon", {"train": {"clip": 0.0}}),
        ("sgd", {"train": {"nonfinite": "skip"}, "model": {"head": "sigmoid", "ffn_bias": "zero", "norm": "none"}}),
    ],
    ids=["adamw", "muon", "sgd"],
)
def test_every_optimiser_and_part_of_the_network_trains_as_alone(runs, tmp_path, optimizer, changes, monkeypatch):
    # Muon's products in fp32: in bf16 their order decides a last bit, and that a hundredth of an update's norm
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    made = runs("swiglu", (1e-2, 3e-3), changes.get("model"), optimizer=optimizer, **changes["train"])
    train_stack(made)
    for folder, other in zip(made, train_alone(made, tmp_path), strict=True):
        assert_same_numbers(folder, other, rel=1e-4)
        probed, expected = (records(path)[-1] for path in (folder, other))
        for key in ("path/blocks.0/up_efficiency", "act/blocks.0/slope", "update/blocks.0.attn.qkv/reach"):
            assert probed[key] == pytest.approx(expected[key], rel=1e-3)


def test_bf16_stacks_too(runs, tmp_path):
    made = runs("swiglu", (1e-2, 3e-3), precision="bf16", optimizer="muon")
    assert all(train_stack(made).values())
    for folder, other in zip(made, train_alone(made, tmp_path), strict=True):
        assert losses(folder) == pytest.approx(losses(other), rel=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_runs_stack_on_a_gpu(runs, tmp_path, activation, precision):
    made = runs(activation, optimizer="sgd", precision=precision, device="cuda")
    assert all(train_stack(made).values())
    for folder, other in zip(made, train_alone(made, tmp_path), strict=True):
        assert losses(folder) == pytest.approx(losses(other), rel={"fp32": 1e-4, "bf16": 2e-2}[precision])


@pytest.mark.parametrize("activation", ["gelu", "noisy"])
def test_scores_are_those_of_each_model(runs, activation):
    split = Split(np.random.default_rng(0).integers(23, size=200).astype(np.uint16), n_bytes=300, n_documents=1)
    members = []
    for folder, config in runs(activation).items():
        members.append(Run(config, folder, shared=True, stacked=True))
        members[-1].open()
    alone = [evaluate(copy.deepcopy(member.model), split, member.config.micro_batch) for member in members]
    for ours, theirs in zip(Stack(members).score(split), alone, strict=True):
        assert ours.named("val") == pytest.approx(theirs.named("val"), rel=1e-6)
        np.testing.assert_allclose(ours.windows, theirs.windows, rtol=1e-5)
    assert abs(alone[0].loss - alone[1].loss) > 1e-4
    for member in members:
        member.close()


def test_stopped_and_resumed_together_is_never_stopped_bit_for_bit(runs, stop_at, tmp_path):
    made = runs("noisy")
    train_stack(made)
    whole = [records(folder) for folder in made]
    (tmp_path / "stacked").rename(tmp_path / "whole")
    for step in (3, 8):
        stop_at(step, signal.SIGINT)
        with pytest.raises(Interrupted) as stopped:
            train_stack(made)
        assert stopped.value.code == 130
        assert all(f"stopped at step {step + 1} of 12" in (folder / "log.txt").read_text() for folder in made)
    train_stack(made)
    assert [records(folder) for folder in made] == whole
    assert not any("bitwise" in (folder / "log.txt").read_text() for folder in made)


def test_runs_that_resume_at_different_steps_end_as_alone(runs, stop_at, tmp_path, capsys):
    made = runs("swiglu")
    alone = train_alone(made, tmp_path)
    first, second, third = made
    train(made[first], first)  # finished, and left alone
    before = (first / "metrics.jsonl").stat().st_mtime_ns
    for folder, step in ((second, 3), (third, 7)):  # checkpoints of steps 4 and 8
        stop_at(step)
        with pytest.raises(Interrupted):
            train(made[folder], folder)
    fourth = first.with_name("seed3")  # not begun
    made[fourth] = dataclasses.replace(made[third], train=dataclasses.replace(made[third].train, seed=3))
    stop_at(5)
    with pytest.raises(Interrupted):  # while the third still waits at its step 8
        train_stack(made)
    assert [sorted(p.name for p in (f / "checkpoints").iterdir())[-1][-2:] for f in (second, third, fourth)] == [
        "06",
        "08",
        "06",
    ]
    assert all(train_stack(made).values())
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    for folder, other in zip([*made][:3], alone, strict=True):
        assert [r["step"] for r in records(folder)] == [r["step"] for r in records(other)]
        assert_same_numbers(folder, other, rel=1e-4)
    train(made[fourth], tmp_path / "seed3")
    assert_same_numbers(fourth, tmp_path / "seed3", rel=1e-4)
    assert "stacked was False, is True: not bitwise the same from now on" in (second / "log.txt").read_text()


def test_a_run_that_fails_says_why_and_the_others_go_on_as_alone(runs, tmp_path):
    made = runs(lrs=(1e-2, 1e30, 2e-3), warmup=0.0)
    taken = tmp_path / "stacked" / "taken"
    made[taken] = dataclasses.replace(next(iter(made.values())), wandb=WandbConfig(project="another"))
    taken.mkdir(parents=True)
    (taken / "thesis.tex").write_text("years of work")
    good, wild, other, _ = made
    summaries = train_stack(made)
    assert [folder for folder, summary in summaries.items() if summary is None] == [wild, taken]
    with pytest.raises(FloatingPointError) as error:
        train(made[wild], tmp_path / "wild")
    step = str(error.value).partition(":")[0]  # what is not finite first is decided by the last digits
    last = (wild / "log.txt").read_text().splitlines()[-1]
    assert last.startswith(f"{step}: the loss is ")
    assert "The first value that is not finite is " in last
    assert not (wild / "summary.json").exists()
    assert "is not a run" in (taken / "log.txt").read_text()
    for folder in (good, other):
        train(made[folder], tmp_path / folder.name)
        assert_same_numbers(folder, tmp_path / folder.name, rel=1e-4)


def test_a_run_that_waits_is_trained_though_all_others_fail_before_its_step(runs, stop_at, tmp_path):
    made = runs(lrs=(1e-2, 1e30), warmup=0.0)
    good, wild = made
    stop_at(7)
    with pytest.raises(Interrupted):
        train(made[good], good)
    summaries = train_stack(made)
    assert summaries[wild] is None
    assert summaries[good] is not None
    train(made[good], tmp_path / "alone")
    assert_same_numbers(good, tmp_path / "alone", rel=1e-4)


def test_a_bug_in_one_run_is_in_its_log_with_its_traceback(runs, monkeypatch):
    made = runs()
    first, *others = made
    write = run.write_file

    def write_file(path, content):
        if path == first / "val_windows.npy":
            raise ZeroDivisionError("a bug")
        write(path, content)

    monkeypatch.setattr(run, "write_file", write_file)
    summaries = train_stack(made)
    assert [folder for folder, summary in summaries.items() if summary] == others
    log = (first / "log.txt").read_text()
    assert "Traceback" in log
    assert log.endswith("ZeroDivisionError: a bug\n")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_step_that_is_not_finite_leaves_its_run_as_it_was_and_others_go_on(runs, tmp_path, monkeypatch, optimizer):
    def batch(tokens_N, seed, step, *shape):
        if (seed, step) == (1, 3):
            bad[0].data[0, 0] = float("nan")
        return train_batch(tokens_N, seed, step, *shape)

    made = runs(optimizer=optimizer, nonfinite="skip", lrs=(1e-2, 3e-3), eval_every=-1, tokens=8 * 4 * 5, probes=0)
    bad, make = [], stack.Stack

    def stacked(members):
        bad.append(members[1].model.get_parameter("blocks.0.ffn.up.weight"))
        return make(members)

    monkeypatch.setattr(stack, "Stack", stacked)
    monkeypatch.setattr(one_step, "train_batch", batch)
    train_stack(made)
    good, spoilt = made
    assert [r["train/skipped"] for r in records(spoilt) if "train/skipped" in r] == [0, 0, 0, 1, 2]
    newest = load_file(spoilt / "checkpoints" / "step-00000005" / "optimizer.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in newest.items() if name != "rng.cpu")
    if optimizer == "adamw":
        assert newest["norm.weight/step"] == 3
    monkeypatch.undo()
    monkeypatch.setattr("training.run.sample_of", lambda *_: "text")
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "cache"))
    train(made[good], tmp_path / "alone")
    assert losses(good) == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)  # Muon works in bf16


def test_more_runs_than_memory_holds_go_one_stack_after_another(runs, monkeypatch):
    sizes, make = [], stack.Stack
    monkeypatch.setattr(loop, "room", lambda _: 2)
    monkeypatch.setattr(stack, "Stack", lambda members: sizes.append(len(members)) or make(members))
    made = runs(tokens=8 * 4 * 3, lrs=(1e-3, 2e-3, 3e-3, 4e-3, 5e-3))
    assert all(train_stack(made).values())
    assert sizes == [2, 2]  # and one alone


def test_a_signal_at_the_end_of_a_stack_stops_before_the_next(runs, monkeypatch):
    def text(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr("training.run.sample_of", lambda *_: "text")
        return "text"

    monkeypatch.setattr(loop, "room", lambda _: 1)
    monkeypatch.setattr("training.run.sample_of", text)
    made = runs(tokens=8 * 4 * 3, lrs=(1e-3, 2e-3))
    with pytest.raises(Interrupted) as stopped:
        train_stack(made)
    assert stopped.value.code == 143
    assert [folder.exists() for folder in made] == [True, False]
    assert all(train_stack(made).values())


def test_twice_the_memory_holds_twice_the_runs_and_one_always_goes(tiny, monkeypatch):
    rooms = []
    for memory in (1, 1e9, 2e9):
        monkeypatch.setattr(stack, "free_memory", lambda _, memory=memory: int(memory))
        rooms.append(room(tiny()))
    assert rooms[0] == 1
    assert rooms[1] > 100
    assert rooms[2] == pytest.approx(2 * rooms[1], abs=1)


def test_runs_stack_that_differ_in_seed_and_learning_rate_alone(tiny):
    config = tiny()
    for other in (tiny(train={"seed": 7}), tiny(train={"lr": 0.5}), tiny(train={"keep": 9})):
        assert shape(other) == shape(config)
    changes = [{"model": {"activation": "relu"}}, {"train": {"tokens": 99}}, {"train": {"clip": 0.5}}]
    for change in [*changes, {"data": {"tokenizer": "bpe:300"}}, {"train": {"device": "cpu"}}]:
        assert shape(tiny(**change)) != shape(config), change
    by_seed = [
        tiny(data={"split_seed": -1}, train={"seed": seed, "lr": lr}) for seed, lr in ((1, 1.0), (1, 2.0), (2, 1.0))
    ]
    assert shape(by_seed[0]) == shape(by_seed[1]) != shape(by_seed[2])  # seeds that hold out other documents
