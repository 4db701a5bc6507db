import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOKENIZER, step

from data.tokenizer import Tokenizer
from errors import UserError
from model.config import ModelConfig
from model.gpt import GPT
from training import checkpoint
from training.config import TrainConfig
from training.optim import build_optimizers


def make(optimizer: Any = "adamw", seed: int = 0):
    model = GPT(ModelConfig(activation="swish_beta", n_layer=1, n_head=2, d_model=8, context=4), 11, seed)
    return model, build_optimizers(model, TrainConfig(optimizer=optimizer))


def save(folder, n, model, optimizers, keep=2):
    return checkpoint.save(folder, n, model, optimizers, {"note": n}, TOKENIZER, keep)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_training_goes_on_bit_for_bit_from_a_checkpoint(tmp_path, optimizer):
    model, optimizers = make(optimizer)
    step(model, optimizers, 1)
    path = save(tmp_path, 1, model, optimizers)
    draw = torch.rand(3)
    step(model, optimizers, 2)

    other, others = make(optimizer, seed=9)
    checkpoint.load_weights(path, other)
    checkpoint.load_optimizers(path, other, others)
    assert torch.equal(torch.rand(3), draw)  # torch's own random state came back too
    step(other, others, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    path = save(tmp_path, 7, *make())
    assert path.name == "step-00000007"
    assert {p.name for p in path.iterdir()} == {*checkpoint.FILES, "manifest.json"}
    assert checkpoint.read_state(path) == {"step": 7, "note": 7}
    assert Tokenizer.load(path / "tokenizer.json").encode("abc") == TOKENIZER.encode("abc")


def test_only_the_newest_are_kept_and_leftovers_of_dead_saves_go(tmp_path):
    (tmp_path / ".writing-00000001").mkdir()
    (tmp_path / ".dropped-00000001").mkdir()
    for n in (1, 2, 3):
        save(tmp_path, n, *make())
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000002", "step-00000003"}


def test_a_copy_under_another_name_stays_and_is_no_checkpoint(tmp_path):
    copies = [tmp_path / f"step-00000001-{name}" for name in ("backup", "best")]
    for copy in copies:
        shutil.copytree(save(tmp_path, 1, *make()), copy)
    for n in (2, 3):
        save(tmp_path, n, *make(), keep=1)
    copies += [Path(shutil.copytree(tmp_path / "step-00000003", tmp_path / "step-00000003-backup"))]
    newest = checkpoint.newest(tmp_path)
    assert newest == tmp_path / "step-00000003"
    assert {*tmp_path.iterdir()} == {*copies, newest}


@pytest.mark.parametrize("name", [*checkpoint.FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys, name, damage):
    save(tmp_path, 1, *make())
    path = save(tmp_path, 2, *make()) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000001"
    warning = capsys.readouterr().err
    assert "step-00000002" in warning
    assert name in warning


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    path = save(tmp_path, 1, *make())
    (path / "state.json").write_text(json.dumps({"step": 0}))
    with pytest.raises(UserError, match=r"step-00000001: state\.json is missing or does not match"):
        checkpoint.newest(tmp_path)


def test_a_checkpoint_that_its_run_drops_while_it_is_read_is_not_damaged(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, *make())
    sha256_of = checkpoint.sha256_of

    def meanwhile(path):
        if path.name == "optimizer.safetensors" and path.parent.name == "step-00000001":
            monkeypatch.setattr(checkpoint, "sha256_of", sha256_of)
            save(tmp_path, 2, *make(), keep=1)
        return sha256_of(path)

    monkeypatch.setattr(checkpoint, "sha256_of", meanwhile)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002"
    assert capsys.readouterr().err == ""


def test_what_was_just_saved_is_never_pruned_in_favour_of_a_later_damaged_one(tmp_path):
    for n in (50, 100):
        path = save(tmp_path, n, *make())
    (path / "state.json").unlink()
    save(tmp_path, 60, *make(), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000060"]
