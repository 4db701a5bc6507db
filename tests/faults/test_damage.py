"""Checkpoints of a real run, damaged as a disk or a hand damages: detected, named, and never started over."""

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


@pytest.fixture
def run(tiny, tmp_path, stop_at):
    """A run stopped at step 15, with the checkpoints of steps 12 and 15."""
    stop_at(14)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    return tmp_path / "run"


def truncate(path, draw):
    """Cut one file short."""
    file = path / draw.choice(ALL)
    os.truncate(file, draw.randrange(file.stat().st_size))
    return [file.name]


def flip(path, draw):
    """Flip one bit of one file."""
    file = path / draw.choice(ALL)
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return [file.name]


def zero(path, draw):
    """Zero a block of one file, as a file system does that lost it."""
    file, size = path / draw.choice(ALL), draw.choice([64, 512, 4096])
    content = bytearray(file.read_bytes())
    starts = [start for start in range(0, len(content), size) if any(content[start : start + size])]
    start = draw.choice(starts)
    content[start : start + size] = bytes(len(content[start : start + size]))
    file.write_bytes(content)
    return [file.name]


def assert_detected(run, damage, capsys):
    """Damage a copy of the newest checkpoint: it is refused by name, and the one before is used with one warning."""
    checkpoints = run.parent / "copy"
    shutil.copytree(run / "checkpoints", checkpoints)
    names = damage(checkpoints / "step-00000015")
    with pytest.raises(checkpoint.Damaged) as error:
        checkpoint.verify(checkpoints / "step-00000015")
    assert any(name in str(error.value) for name in names), (names, error.value)
    newest = checkpoint.newest(checkpoints)
    assert newest is not None
    assert newest.name == "step-00000012"
    assert capsys.readouterr().err == f"warning: {error.value}; using step-00000012\n"
    shutil.rmtree(checkpoints)


@pytest.mark.parametrize(("damage", "short", "long"), [(truncate, 20, 200), (flip, 30, 300), (zero, 5, 50)])
def test_random_damage_is_detected_named_and_the_checkpoint_before_used(run, capsys, times, damage, short, long):
    draw = random.Random(0)
    for _ in range(times(short, long)):
        assert_detected(run, lambda path: damage(path, draw), capsys)


@pytest.mark.parametrize("name", ALL)
def test_a_deleted_file_is_named(run, capsys, name):
    assert_detected(run, lambda path: (path / name).unlink() or [name], capsys)


def swap(one, other):
    """Put two files in each other's place."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [one.name, other.name]


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(ALL, 2)])
def test_two_files_in_each_others_place_are_named(run, capsys, one, other):
    assert_detected(run, lambda path: swap(path / one, path / other), capsys)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_file_in_the_place_of_another_checkpoints_spoils_both(run, name):
    checkpoints = run / "checkpoints"
    swap(checkpoints / "step-00000012" / name, checkpoints / "step-00000015" / name)
    for path in checkpoints.iterdir():
        with pytest.raises(checkpoint.Damaged, match=f"{path.name}: .*does not match manifest"):
            checkpoint.verify(path)


def test_an_empty_folder_is_no_checkpoint(run, capsys):
    def empty(path):
        shutil.rmtree(path)
        path.mkdir()
        return ["manifest.json"]

    assert_detected(run, empty, capsys)


@pytest.mark.parametrize("damage", [truncate, flip, zero])
def test_training_goes_on_from_the_checkpoint_before_as_if_never_stopped(tiny, tmp_path, run, capsys, damage):
    train(tiny(), tmp_path / "whole")
    damage(run / "checkpoints" / "step-00000015", random.Random(1))
    capsys.readouterr()
    train(tiny(), run)
    said = capsys.readouterr()
    assert said.err.count("warning") == 1
    assert "resumed at step 12 of 20" in said.out
    assert records(run) == records(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


@pytest.mark.parametrize("damage", [truncate, flip, zero])
def test_with_all_damaged_nothing_starts_over(tiny, run, damage):
    for path in (run / "checkpoints").iterdir():
        damage(path, random.Random(2))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no intact checkpoint .*step-00000015: .*step-00000012: .* to start over"):
        train(tiny(), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
