"""Files of a run, damaged as by a disk or foreign under honest hashes: named, and nothing wrong is believed."""

import os
import sys

import pytest
from helpers import records, same_weights

from benchmarks.damage import PLACES, make_runs, try_change
from errors import Interrupted, UserError
from training.loop import train

OLDER, NEWEST = "step-00000012", "step-00000015"


@pytest.fixture
def run(tiny, tmp_path, stop_at):
    """A run that was stopped at step 15, with the checkpoints of steps 12 and 15."""
    stop_at(14)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.timeout(3600)
def test_no_change_to_a_file_ends_in_a_traceback_or_in_other_results(tmp_path, monkeypatch, times):
    for name in ("ACTGPT_CACHE", "WANDB_MODE"):
        monkeypatch.setenv(name, os.environ[name])  # both are set again below, and restored at the end
    monkeypatch.setattr(sys, "argv", [])
    make_runs(tmp_path)
    found = [(number, *try_change(tmp_path, number)) for number in range(times(2 * len(PLACES), 500))]
    assert [change for change in found if change[-1] not in ("refused", "mended", "no effect")] == []
    assert sum(change[-1] != "no effect" for change in found) > 0.7 * len(found)


def cut(path):
    """Cut a file to half of its length."""
    os.truncate(path, path.stat().st_size // 2)


def test_a_run_goes_on_from_the_checkpoint_before_as_if_never_stopped(tiny, tmp_path, run, capsys):
    train(tiny(), tmp_path / "whole")
    cut(run / "checkpoints" / NEWEST / "optimizer.safetensors")
    capsys.readouterr()
    train(tiny(), run)
    said = capsys.readouterr()
    assert said.err.count("warning") == 1
    assert f"{NEWEST}/optimizer.safetensors is damaged" in said.err
    assert f"Using {OLDER}." in said.err
    assert "resumed at step 12 of 20" in said.out
    assert records(run) == records(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


def test_if_all_checkpoints_are_damaged_nothing_starts_over(tiny, run):
    for path in (run / "checkpoints").iterdir():
        cut(path / "model.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"no intact checkpoint .*{NEWEST}/.*{OLDER}/.* to start over"):
        train(tiny(), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
