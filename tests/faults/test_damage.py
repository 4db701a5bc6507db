"""Checkpoints of a real run, damaged as by a disk or a hand: detected, named, and nothing starts over."""

import itertools
import os
import random
import shutil

import pytest
from helpers import records, same_weights

from errors import Interrupted, UserError
from training import checkpoint
from training.loop import train

ALL = (*checkpoint.FILES, "manifest.json")
OLDER, NEWEST = "step-00000012", "step-00000015"


@pytest.fixture
def run(tiny, tmp_path, stop_at):
    """A run that was stopped at step 15, with the checkpoints of steps 12 and 15."""
    stop_at(14)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    return tmp_path / "run"


def truncate(file, draw):
    """Cut a file short."""
    os.truncate(file, draw.randrange(file.stat().st_size))


def flip(file, draw):
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def swap(one, other):
    """Put two files in each other's place."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def assert_detected(run, names, damage, capsys):
    """Damage a copy of the newest checkpoint: one of `names` is named, and the checkpoint before it is used."""
    checkpoints = run.parent / "copy"
    shutil.copytree(run / "checkpoints", checkpoints)
    damage(checkpoints / NEWEST)
    with pytest.raises(checkpoint.Damaged) as error:
        checkpoint.verify(checkpoints / NEWEST)
    assert any(name in str(error.value) for name in names)
    assert checkpoint.newest(checkpoints) == checkpoints / OLDER
    assert capsys.readouterr().err == f"warning: {error.value}; using {OLDER}\n"
    shutil.rmtree(checkpoints)


@pytest.mark.parametrize(("damage", "short", "long"), [(truncate, 10, 200), (flip, 20, 300)])
def test_random_damage_is_detected_and_the_checkpoint_before_it_is_used(run, capsys, times, damage, short, long):
    draw = random.Random(0)
    for n in range(times(short, long)):
        name = ALL[n % len(ALL)]
        assert_detected(run, [name], lambda path, name=name: damage(path / name, draw), capsys)


def test_files_that_are_missing_or_in_another_s_place_are_named(run, capsys):
    for name in ALL:
        assert_detected(run, [name], lambda path, name=name: (path / name).unlink(), capsys)
    for pair in itertools.combinations(ALL, 2):
        assert_detected(run, pair, lambda path, pair=pair: swap(path / pair[0], path / pair[1]), capsys)
    assert_detected(run, ["manifest.json"], lambda path: [file.unlink() for file in path.iterdir()], capsys)


def test_a_run_goes_on_from_the_checkpoint_before_as_if_never_stopped(tiny, tmp_path, run, capsys):
    train(tiny(), tmp_path / "whole")
    flip(run / "checkpoints" / NEWEST / "optimizer.safetensors", random.Random(1))
    capsys.readouterr()
    train(tiny(), run)
    said = capsys.readouterr()
    assert said.err.count("warning") == 1
    assert "resumed at step 12 of 20" in said.out
    assert records(run) == records(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


def test_if_all_checkpoints_are_damaged_nothing_starts_over(tiny, run):
    for path in (run / "checkpoints").iterdir():
        truncate(path / "model.safetensors", random.Random(2))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"no intact checkpoint .*{NEWEST}: .*{OLDER}: .* to start over"):
        train(tiny(), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
