import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import records, same_weights

from data.batches import train_batch
from data.dataset import prepare
from errors import Interrupted, UserError
from study.run.protocol import run_study
from training import checkpoint
from training import step as one_step
from training.clock import Clock
from training.config import tree as plain
from training.folder import hold, read_run_config
from training.loop import check_alike, train
from training.parallel import ALONE, Alone
from training.sample import load_run


def test_a_run_is_a_folder_that_tells_all(tiny, tmp_path):
    config = tiny()
    summary = train(config, tmp_path / "run")
    assert read_run_config(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    found = records(tmp_path / "run")
    assert [r["step"] for r in found] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert [r["step"] for r in found if "val/loss" in r] == [0, 8, 16, 20]
    assert all(r["tokens"] == r["step"] * 4 * 16 for r in found)
    assert found[-1]["val/loss"] == summary["val/loss"] < found[0]["val/loss"] - 1
    assert summary["tokens"] == 20 * 4 * 16
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000018", "step-00000020"]


def test_a_checkpoint_stands_only_on_records_that_a_power_loss_cannot_take(tiny, tmp_path, monkeypatch):
    fsync, replace, on_disk, seen = os.fsync, os.replace, {}, []

    def noted(file):
        fsync(file)
        found = os.stat(file)
        on_disk[found.st_ino] = found.st_size

    def checked(source, target):
        if Path(target).name.startswith("step-"):
            metrics = os.stat(tmp_path / "run" / "metrics.jsonl")
            seen.append(json.loads((Path(source) / "state.json").read_text())["offset"])
            assert seen[-1] == metrics.st_size == on_disk[metrics.st_ino]
            parts = [Path(source), *Path(source).iterdir()]  # its name must not stand before what it names
            assert all(os.stat(part).st_ino in on_disk for part in parts)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    train(tiny(), tmp_path / "run")
    assert len(seen) > 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("step", [0, 7, 12, 18])
def test_stopping_and_resuming_equals_never_stopping_bit_for_bit(tiny, tmp_path, stop_at, step, optimizer):
    config = tiny(train={"optimizer": optimizer}, model={"activation": "swiglu"})
    train(config, tmp_path / "whole")
    stop_at(step)
    with pytest.raises(Interrupted) as stopped:
        train(config, tmp_path / "parts")
    assert stopped.value.code == 143
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_time_and_speed_are_those_of_all_sessions(tiny, tmp_path, stop_at):
    stop_at(9)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    before = load_run(tmp_path / "run", torch.device("cpu"))[2]
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
    assert clock.speed() == 75
    clock.trained(100, 0.5)
    assert (clock.speed(), clock.train_seconds) == (200, 4.5)


def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    train(tiny(), tmp_path / "whole")

    def batch(tokens_N, seed, step, *shape):
        if step == 15:
            raise OSError("the disk is gone")
        return train_batch(tokens_N, seed, step, *shape)

    monkeypatch.setattr(one_step, "train_batch", batch)
    with pytest.raises(OSError, match="the disk is gone"):
        train(tiny(), tmp_path / "parts")
    monkeypatch.undo()
    assert records(tmp_path / "parts")[-1]["step"] == 14  # beyond the checkpoint of step 12, and cut back to it
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "cache"))
    train(tiny(), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_ctrl_c_has_its_own_code(tiny, tmp_path, stop_at):
    stop_at(3, signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped at step 4 of 20") as stopped:
        train(tiny(), tmp_path / "run")
    assert stopped.value.code == 130


def test_evaluating_more_often_changes_nothing_in_training(tiny, tmp_path):
    train(tiny(train={"eval_every": 0}), tmp_path / "seldom")
    train(tiny(train={"eval_every": 1}), tmp_path / "often")
    seldom = {r["step"]: r["train/loss"] for r in records(tmp_path / "seldom") if "train/loss" in r}
    often = {r["step"]: r["train/loss"] for r in records(tmp_path / "often") if "train/loss" in r}
    assert seldom == often
    assert [r["step"] for r in records(tmp_path / "seldom") if "val/loss" in r] == [20]
    assert same_weights(tmp_path / "seldom", tmp_path / "often")


def test_accumulated_micro_batches_are_the_whole_batch(tiny, tmp_path):
    train(tiny(), tmp_path / "whole")
    train(tiny(train={"accumulate": 4}), tmp_path / "micro")
    whole, micro = (
        [r["train/loss"] for r in records(tmp_path / name) if "train/loss" in r] for name in ("whole", "micro")
    )
    assert len(whole) == 10
    assert micro == pytest.approx(whole, rel=1e-4)


def test_a_seed_decides_everything(tiny, tmp_path):
    train(tiny(), tmp_path / "a")
    train(tiny(), tmp_path / "b")
    train(tiny(train={"seed": 1}), tmp_path / "c")
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert records(tmp_path / "a") != records(tmp_path / "c")


def test_a_finished_run_is_not_trained_again(tiny, tmp_path):
    summary = train(tiny(), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}
    assert train(tiny(), tmp_path / "run") == summary
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"} == before


def test_a_finished_run_needs_its_corpus_no_longer(tiny, tmp_path, corpus):
    summary = train(tiny(), tmp_path / "run")
    corpus.unlink()
    assert train(tiny(), tmp_path / "run") == summary
    with pytest.raises(UserError, match=r"train\.lr: 0\.01 in the folder"):
        train(tiny(train={"lr": 0.02}), tmp_path / "run")


@pytest.mark.parametrize("change", [{"data": {"corpus": "nowhere.txt"}}, {"train": {"device": "mps"}}])
def test_what_is_not_on_this_machine_is_refused_before_a_folder_is_made(tiny, tmp_path, change):
    tree = plain(tiny(**change))
    tree["model"]["activation"] = ["relu", "gelu"]
    for begin in (lambda: train(tiny(**change), tmp_path / "run"), lambda: run_study(tree, tmp_path / "run")):
        with pytest.raises(UserError, match=r"no such file|not on this machine"):
            begin()
    assert not (tmp_path / "run").exists()


def test_another_config_is_refused_and_the_difference_shown(tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.lr: 0\.01 in the folder, 0\.02 asked for"):
        train(tiny(train={"lr": 0.02}), tmp_path / "run")
    train(tiny(train={"keep": 5}), tmp_path / "run")  # where and how it is kept does not matter


@pytest.mark.parametrize("left", [["summary.json"], ["checkpoints"]])
def test_another_config_is_refused_by_whatever_a_run_has_left(tiny, tmp_path, left):
    run = tmp_path / "run"
    train(tiny(), run)
    config = (run / "config.toml").read_bytes()
    for path in run.iterdir():
        if path.name not in [*left, "config.toml"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"model\.activation: 'gelu' in the folder, 'relu' asked for"):
        train(tiny(model={"activation": "relu"}), run)
    assert (run / "config.toml").read_bytes() == config


def test_a_folder_that_is_renamed_ends_its_run_with_its_name(tiny, tmp_path, monkeypatch):
    def batch(tokens_N, seed, step, *shape):
        if step == 10:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return train_batch(tokens_N, seed, step, *shape)

    monkeypatch.setattr(one_step, "train_batch", batch)
    with pytest.raises(UserError, match="its folder is gone, or was renamed"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    for name in ("elsewhere", "other"):
        train(tiny(), tmp_path / name)
    assert records(tmp_path / "elsewhere") == records(tmp_path / "other")


class Second(Alone):
    """A rank that hears of a first one with another config, other data or another precision."""

    def __init__(self, **heard):
        self.heard = heard

    def first(self, call):
        config, fingerprint, precision = json.loads(json.dumps(call()))  # as it travels
        config["train"] |= {key: value for key, value in self.heard.items() if key in config["train"]}
        return [config, self.heard.get("fingerprint", fingerprint), self.heard.get("picked", precision)]


def test_ranks_that_would_train_something_else_are_refused(tiny):
    config = tiny()
    data = prepare(config.data)
    check_alike(config, data, ALONE)
    check_alike(config, data, Second(keep=7))
    with pytest.raises(UserError, match=r"another config than the first:\n  train\.lr: 0\.5 .* 0\.01"):
        check_alike(config, data, Second(lr=0.5))
    with pytest.raises(UserError, match=r"other tokens than the first: is .* equal on all hosts"):
        check_alike(config, data, Second(fingerprint="f"))
    with pytest.raises(UserError, match=r"would train in fp32, the first in bf16: give all of them --train\.precision"):
        check_alike(config, data, Second(picked="bf16"))


def test_a_folder_that_is_no_run_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a run"):
        train(tiny(), tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_checkpoint_that_its_run_drops_while_it_is_loaded_gives_way_to_the_next(tiny, tmp_path, stop_at, monkeypatch):
    stop_at(7)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    read_state = checkpoint.read_state

    def meanwhile(path):
        monkeypatch.setattr(checkpoint, "read_state", read_state)
        later = path.rename(path.with_name("step-00000009"))  # in the place of the one that is gone
        (later / "state.json").write_text(json.dumps(json.loads((later / "state.json").read_text()) | {"step": 9}))
        hashes = {name: checkpoint.sha256_of(later / name) for name in checkpoint.FILES}
        (later / "manifest.json").write_text(json.dumps(hashes))
        return read_state(path)

    monkeypatch.setattr(checkpoint, "read_state", meanwhile)
    assert load_run(tmp_path / "run", torch.device("cpu"))[2]["step"] == 9


SCALARS = "".join(f"{name} = 1\n" for name in ("data", "model", "train", "wandb"))


@pytest.mark.parametrize("text", ["url = 'https://mine.org'\n", "# mine\n[train]\nlr = 0.01\n", "\xff[[[", SCALARS])
def test_a_config_that_no_run_wrote_is_left_alone(tiny, tmp_path, text):
    mine = tmp_path / "mine" / "config.toml"
    mine.parent.mkdir()
    mine.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.toml is not of a run"):
        train(tiny(), mine.parent)
    assert mine.read_text(encoding="latin-1") == text


def test_a_disk_that_becomes_read_only_does_not_hide_what_failed(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    def write():
        with monkeypatch.context() as patch, hold(tmp_path / "run"):
            patch.setattr(Path, "unlink", fail)
            raise UserError("its own reason")

    with pytest.raises(UserError, match="its own reason"):
        write()
    with hold(tmp_path / "run"):  # free again
        pass


def test_a_context_longer_than_the_corpus_is_refused_with_both_numbers(tiny, tmp_path):
    with pytest.raises(UserError, match=r"context = 100000 is longer than the training split .* \d+ tokens"):
        train(tiny(model={"context": 100_000}), tmp_path / "run")


def test_other_data_under_a_checkpoint_is_refused(tiny, tmp_path, stop_at, corpus):
    stop_at(8)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    corpus.write_text(corpus.read_text() + "\nand a new ending")
    with pytest.raises(UserError, match="trained on other data"):
        train(tiny(), tmp_path / "run")


def test_a_refused_run_leaves_its_folder_free_for_the_way_out(tiny, tmp_path):
    with pytest.raises(UserError, match="longer than the training split"):
        train(tiny(model={"context": 100_000}), tmp_path / "run")
    train(tiny(), tmp_path / "run")


def test_stopping_again_before_the_first_new_record_keeps_the_metrics_whole(tiny, tmp_path, stop_at):
    train(tiny(), tmp_path / "whole")
    for step in (9, 10, 11):
        stop_at(step)
        with pytest.raises(Interrupted):
            train(tiny(), tmp_path / "parts")
    train(tiny(), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
