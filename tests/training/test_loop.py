"""A run from its first step to its last: what it writes, how it stops and goes on, and what it refuses."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Noisy, records, same_weights, train_and_stop

from data.batches import train_batch
from data.dataset import prepare
from errors import Interrupted, UserError
from model.activations import ACTIVATIONS
from training import loop
from training import step as one_step
from training.clock import Clock
from training.contents import read_config, read_summary
from training.loop import train
from training.sample import load_model
from training.score import score_run
from training.summary import describe

pytestmark = pytest.mark.usefixtures("no_sample")


def by_step(folder, key):
    """Return a metric of a run by the steps at which it is recorded."""
    return {record["step"]: record[key] for record in records(folder) if key in record}


def test_a_run_is_a_folder_that_tells_all(tiny, tmp_path):
    config = tiny()
    summary = train(config, tmp_path / "run")
    assert read_config(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    found = records(tmp_path / "run")
    assert [r["step"] for r in found] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert [r["step"] for r in found if "val/loss" in r] == [0, 8, 16, 20]
    assert all(r["tokens"] == r["step"] * 4 * 16 for r in found)
    assert found[-1]["val/loss"] == summary["val/loss"] < found[0]["val/loss"] - 1
    assert summary["tokens"] == 20 * 4 * 16
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000018", "step-00000020"]


LINE = b'{"step": 8, "tokens": 512, "time": 1.0}\n'


@pytest.mark.parametrize("damage", [lambda text: LINE + text, lambda text: text[:99]])
def test_a_resume_puts_the_records_of_its_checkpoint_back(tiny, tmp_path, stop_at, capsys, damage):
    train(tiny(), tmp_path / "whole")
    train_and_stop(tiny(), tmp_path / "run", stop_at, 9)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    train(tiny(), tmp_path / "run")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert "metrics.jsonl was changed; it is restored from the checkpoint. No record is lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", lambda text: text[:-9]),
        ("val_windows.npy", None),
        ("val_windows.npy", lambda text: text.replace(b"5", b"6")),
        ("summary.json", lambda text: text.replace(b"5", b"6")),
    ],
)
def test_a_damaged_result_is_made_anew_from_the_last_checkpoint(tiny, tmp_path, capsys, monkeypatch, name, damage):
    run = tmp_path / "run"
    summary = train(tiny(), run)
    content = (run / name).read_bytes()
    (run / name).write_bytes(damage(content)) if damage else (run / name).unlink()
    if (run / "summary.json").exists():
        with pytest.raises(UserError, match=rf"{name} is damaged .*The train\.py command of this run writes it again"):
            read_summary(run)
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("it trains again"))
    again = train(tiny(), run)
    assert {key: again[key] for key in again if "loss" in key} == {
        key: summary[key] for key in summary if "loss" in key
    }
    assert read_summary(run) == again
    assert name == "summary.json" or (run / name).read_bytes() == content


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_stopped_four_times_and_resumed_is_never_stopped_bit_for_bit(tiny, tmp_path, stop_at, optimizer):
    config = tiny(train={"optimizer": optimizer}, model={"activation": "swiglu"})
    train(config, tmp_path / "whole")
    for step in (0, 7, 8, 17):  # before any checkpoint, between two, in the first step of a session, at a checkpoint
        train_and_stop(config, tmp_path / "parts", stop_at, step)
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_random_numbers_go_on_where_they_stopped(tiny, tmp_path, stop_at, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "noisy", Noisy)
    config = tiny(model={"activation": "noisy"})
    train(config, tmp_path / "whole")
    train_and_stop(config, tmp_path / "parts", stop_at, 7)
    torch.manual_seed(99)
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_time_and_speed_are_those_of_all_sessions(tiny, tmp_path, stop_at):
    train_and_stop(tiny(), tmp_path / "run", stop_at, 9)
    before = load_model(tmp_path / "run", torch.device("cpu"))[2]
    assert 0 < before["train_seconds"] < before["time"]
    summary = train(tiny(), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    times = {record["step"]: record["time"] for record in lines}
    assert [*times.values()] == sorted(times.values())
    assert times[8] < before["time"] < times[12]
    assert before["train_seconds"] < summary["perf/train_seconds"] < times[20]
    assert summary["perf/tokens_per_s"] == summary["tokens"] / summary["perf/train_seconds"]


def test_a_speed_is_that_since_the_last_one():
    clock = Clock(5.0, 2.0)
    for tokens, seconds in ((100, 1.0), (50, 1.0)):
        clock.trained(tokens, seconds)
    assert clock.lap_speed() == 75
    clock.trained(100, 0.5)
    assert (clock.lap_speed(), clock.train_seconds) == (200, 4.5)


def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    train(tiny(), tmp_path / "whole")

    def batch(tokens_N, seed, step, *shape):
        if step == 15:
            raise OSError("the disk is gone")
        return train_batch(tokens_N, seed, step, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(one_step, "train_batch", batch)
        with pytest.raises(OSError, match="the disk is gone"):
            train(tiny(), tmp_path / "parts")
    assert records(tmp_path / "parts")[-1]["step"] == 14  # beyond the checkpoint of step 12, and cut back to it
    train(tiny(), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_each_signal_has_its_own_code(tiny, tmp_path, stop_at):
    for step, signum, code in ((3, signal.SIGINT, 130), (9, signal.SIGTERM, 143)):
        stop_at(step, signum)
        with pytest.raises(Interrupted, match=f"stopped at step {step + 1} of 20; the same command") as stopped:
            train(tiny(), tmp_path / "run")
        assert stopped.value.code == code


def test_evaluating_more_often_changes_nothing_in_training(tiny, tmp_path):
    for name, every in (("seldom", -1), ("default", 0), ("often", 1)):
        train(tiny(train={"eval_every": every, "tokens": 640}), tmp_path / name)
    assert by_step(tmp_path / "seldom", "train/loss") == by_step(tmp_path / "often", "train/loss")
    assert [*by_step(tmp_path / "seldom", "val/loss")] == [10]
    assert [*by_step(tmp_path / "default", "val/loss")] == [*range(11)]
    assert same_weights(tmp_path / "seldom", tmp_path / "often")


def test_accumulated_micro_batches_are_the_whole_batch(tiny, tmp_path):
    train(tiny(), tmp_path / "whole")
    train(tiny(train={"accumulate": 4}), tmp_path / "micro")
    whole, micro = (by_step(tmp_path / name, "train/loss") for name in ("whole", "micro"))
    assert len(whole) == 10
    assert micro == pytest.approx(whole, rel=1e-4)


def test_a_seed_decides_everything(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(train={"seed": seed}), tmp_path / name)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert records(tmp_path / "a") != records(tmp_path / "c")


def test_each_seed_can_hold_out_other_documents(tiny, tmp_path, corpus):
    lines = corpus.read_text().splitlines(keepends=True)
    for i in range(0, 1000, 20):
        (tmp_path / f"part{i}.txt").write_text("".join(lines[i : i + 20]))
    data = {"corpus": str(tmp_path / "part*.txt"), "split_seed": -1}
    fingerprints = []
    for seed in (3, 4):
        folder = tmp_path / f"run{seed}"
        config = tiny(data=data, train={"seed": seed})
        summary = train(config, folder)
        assert summary["data/fingerprint"] == prepare(replace(config.data, split_seed=seed)).fingerprint
        assert read_config(folder).data.split_seed == -1
        assert score_run(folder, "cpu")["val"].loss == pytest.approx(summary["val/loss"], rel=1e-5)
        fingerprints.append(summary["data/fingerprint"])
    assert fingerprints[0] != fingerprints[1]


def test_a_finished_run_is_not_trained_again_and_needs_its_corpus_no_longer(tiny, tmp_path, corpus):
    def written():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}

    summary, before = train(tiny(), tmp_path / "run"), written()
    corpus.unlink()
    assert train(tiny(), tmp_path / "run") == summary
    assert written() == before
    with pytest.raises(UserError, match=r"train\.lr: 0\.01 in the folder, 0\.02 asked for"):
        train(tiny(train={"lr": 0.02}), tmp_path / "run")
    train(tiny(train={"keep": 5}), tmp_path / "run")  # where and how it is kept does not matter


@pytest.mark.parametrize("lr", [1e4, 1e38], ids=["loss beyond e^700", "loss not a number"])
def test_a_run_that_diverged_at_its_end_is_finished_once_in_strict_json(tiny, tmp_path, lr):
    config = tiny(train={"lr": lr, "warmup": 0.0, "tokens": 64})
    summary = train(config, tmp_path / "run")
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == summary
    assert (summary["status"], summary["val/perplexity"]) == ("diverged", None)
    assert describe(summary).startswith("diverged: ")
    assert read_summary(tmp_path / "run") == summary
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert train(config, tmp_path / "run") == summary
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"data": {"corpus": "nowhere.txt"}}, {"train": {"device": "mps"}}])
def test_what_is_not_on_this_machine_is_refused_before_a_folder_is_made(tiny, tmp_path, change):
    with pytest.raises(UserError, match=r"no such file|this machine does not have it"):
        train(tiny(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", ["summary.json", "checkpoints"])
def test_another_config_is_refused_by_whatever_a_run_has_left(tiny, tmp_path, left):
    run = tmp_path / "run"
    train(tiny(), run)
    config = (run / "config.toml").read_bytes()
    for path in run.iterdir():
        if path.name not in [left, "config.toml"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"model\.activation: 'gelu' in the folder, 'relu' asked for"):
        train(tiny(model={"activation": "relu"}), run)
    assert (run / "config.toml").read_bytes() == config


def test_a_folder_that_is_no_run_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a run"):
        train(tiny(), tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


SCALARS = "".join(f"{name} = 1\n" for name in ("data", "model", "train", "wandb"))


@pytest.mark.parametrize("text", ["url = 'https://mine.org'\n", "# mine\n[train]\nlr = 0.01\n", "\xff[[[", SCALARS])
def test_a_config_that_no_run_wrote_is_left_alone(tiny, tmp_path, text):
    mine = tmp_path / "mine" / "config.toml"
    mine.parent.mkdir()
    mine.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.toml is damaged or was not written by this project"):
        train(tiny(), mine.parent)
    assert mine.read_text(encoding="latin-1") == text


def test_a_run_that_died_while_it_wrote_its_config_goes_on(tiny, tmp_path, monkeypatch):
    replace = os.replace

    def die(partial, path):
        if Path(path).name == "config.toml":
            partial.write_text(partial.read_text(encoding="utf-8")[:20], encoding="utf-8")
            raise KeyboardInterrupt
        replace(partial, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()
    assert train(tiny(), tmp_path / "run")["status"] == "finished"
    assert (tmp_path / "run" / "config.toml").exists()


def test_a_context_longer_than_the_corpus_is_refused_and_leaves_the_folder_free(tiny, tmp_path):
    with pytest.raises(UserError, match=r"context = 100000 is longer than the training split .* \d+ tokens"):
        train(tiny(model={"context": 100_000}, train={"tokens": 10**6}), tmp_path / "run")
    train(tiny(), tmp_path / "run")


def test_other_data_under_a_checkpoint_is_refused(tiny, tmp_path, stop_at, corpus):
    train_and_stop(tiny(), tmp_path / "run", stop_at, 8)
    corpus.write_text(corpus.read_text() + "\nand a new ending")
    with pytest.raises(UserError, match="trained on other data"):
        train(tiny(), tmp_path / "run")
