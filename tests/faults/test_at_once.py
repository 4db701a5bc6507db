"""Two commands for one run, and equal commands in two processes."""

import os

import pytest
from helpers import begin, records, run_flags, same_weights, trains, until

from errors import Interrupted
from training import run as run_module
from training.loop import train


def test_the_second_of_two_is_told_who_writes_the_run_and_both_runs_are_equal(corpus, tmp_path, call):
    out = tmp_path / "run"
    process = begin(corpus, out)
    until(process, lambda: trains(out))
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={out}")
    assert code == 2
    assert f"{out} is being written by process {process.pid} on {os.uname().nodename} since 20" in said
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert not (out / ".holder").exists()
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={tmp_path / 'again'}")
    assert code == 0, said
    assert records(out) == records(tmp_path / "again")
    assert same_weights(out, tmp_path / "again")


def test_all_that_breaks_equality_is_recorded_and_warned_of_at_a_resume(tiny, tmp_path, stop_at, monkeypatch, capsys):
    stop_at(9)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    keys = ["threads", "compiled", "device_name", "torch", "precision"]
    environment = run_module.environment
    others = dict.fromkeys(keys, "another")
    monkeypatch.setattr(run_module, "environment", lambda *arguments: environment(*arguments) | others)
    capsys.readouterr()
    train(tiny(), tmp_path / "run")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == len(keys)
    for key, warning in zip(keys, warnings, strict=True):
        assert warning.startswith(f"warning: {key} was ")
        assert warning.endswith(", is another: not bitwise the same from now on")
