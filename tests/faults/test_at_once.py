"""Processes at once, and processes apart: one holds a run, one makes a corpus, and equal commands give equal bits."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, begin, records, run_flags, same_weights, trains, until

from errors import Interrupted
from training.loop import train


def test_the_second_of_two_is_told_who_holds_the_run_and_both_runs_are_equal(corpus, tmp_path, call):
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
    assert records(out) == records(tmp_path / "again")  # of two processes, on one machine with one thread each
    assert same_weights(out, tmp_path / "again")


MAKES = """
import sys
import data.dataset as d
from data.config import DataConfig
make = d._make
def noted(*arguments):
    print("made")
    make(*arguments)
d._make = noted
print(d.prepare(DataConfig(sys.argv[1], "bytes")).fingerprint)
"""


def test_many_processes_prepare_one_corpus_once(corpus, times):
    command = [sys.executable, "-c", MAKES, str(corpus)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(times(3, 16))]
    said = [process.communicate()[0].split() for process in running]
    assert len({words[-1] for words in said}) == 1
    assert sum("made" in words for words in said) == 1


@pytest.mark.parametrize("key", ["threads", "compiled", "device_name", "torch", "precision"])
def test_what_breaks_equality_is_recorded_and_warned_of_when_a_run_goes_on(
    tiny, tmp_path, stop_at, monkeypatch, capsys, key
):
    from training import loop

    stop_at(9)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    there = loop.environment
    monkeypatch.setattr(loop, "environment", lambda *arguments: there(*arguments) | {key: "another"})
    capsys.readouterr()
    train(tiny(), tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(said) == 1
    assert said[0].startswith(f"warning: {key} was ")
    assert said[0].endswith(", is another: not bitwise the same from here on")
