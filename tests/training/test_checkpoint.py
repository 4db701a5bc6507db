"""Checkpoints by themselves: what they hold, what damage and foreign files do, and which of them are kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOKENIZER, config_of, newest, rewrite, step
from helpers import save_checkpoint as save
from safetensors.torch import load_file, save_file
from torch import nn

from data.tokenizer import Tokenizer
from errors import UserError
from files import sha256_of
from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.gpt import GPT
from training import checkpoint
from training.config import TrainConfig
from training.contents import read_state
from training.optim import build_optimizers
from training.probes.path import WeightPath


def make(optimizer: Any = "adamw", seed: int = 0, activation: str = "swish_beta"):
    model = GPT(ModelConfig(activation=activation, n_layer=1, n_head=2, d_model=8, context=4), 11, seed)
    return model, build_optimizers(model, TrainConfig(optimizer=optimizer))


class Spare(nn.Module):
    """SiLU, beside a frozen parameter and one that no formula reads: neither ever gets a gradient."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.unread = nn.Parameter(torch.tensor(0.25))

    def forward(self, u):
        return u * torch.sigmoid(2 * self.frozen * u)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_parameters_that_get_no_gradient_are_no_obstacle_to_a_resume(tmp_path, monkeypatch, optimizer):
    monkeypatch.setitem(ACTIVATIONS, "spare", Spare)
    model, optimizers = make(optimizer, activation="spare")
    step(model, optimizers, 1)
    path = save(tmp_path, 1, model, optimizers)
    draw = torch.rand(3)
    step(model, optimizers, 2)

    other, others = make(optimizer, seed=9, activation="spare")
    checkpoint.load_weights(path, other)
    checkpoint.load_training_state(path, other, others, {})
    assert torch.equal(torch.rand(3), draw)  # torch's own random state came back too
    step(other, others, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    act = model.get_submodule("blocks.0.ffn.act")
    assert (act.frozen, act.unread) == (0.5, 0.25)


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    path = save(tmp_path, 7, *make())
    assert path.name == "step-00000007"
    assert {p.name for p in path.iterdir()} == {*checkpoint.FILES, "manifest.json"}
    assert read_state(path, config_of(make()[0]))["step"] == 7
    assert Tokenizer.load(path / "tokenizer.json").encode("abc") == TOKENIZER.encode("abc")
    assert json.loads((path / "manifest.json").read_text()) == {n: sha256_of(path / n) for n in checkpoint.FILES}


def test_only_the_newest_are_kept_and_leftovers_of_dead_saves_go(tmp_path):
    (tmp_path / ".step-00000001.partial").mkdir()
    (tmp_path / ".dropped-step-00000001").mkdir()
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
    path = newest(tmp_path)
    assert path == tmp_path / "step-00000003"
    assert {*tmp_path.iterdir()} == {*copies, path}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "flip") for name in (*checkpoint.FILES, "manifest.json")),
        ("state.json", "cut"),
        ("state.json", "delete"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys, name, damage):
    save(tmp_path, 1, *make())
    path = save(tmp_path, 2, *make()) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    used = newest(tmp_path)
    assert used is not None
    assert used.name == "step-00000001"
    warning = capsys.readouterr().err
    assert "step-00000002" in warning
    assert name in warning


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    assert newest(tmp_path) is None
    path = save(tmp_path, 1, *make())
    (path / "state.json").write_text(json.dumps({"step": 0}))
    with pytest.raises(UserError, match=r"step-00000001/state\.json is damaged .* its SHA-256"):
        newest(tmp_path)


FOREIGN = {
    "a missing moment": lambda tensors: tensors.pop("embedding.weight/exp_avg"),
    # The fused AdamW would read such a moment beyond the end of its memory.
    "a moment that is one number": lambda tensors: tensors.update({"embedding.weight/exp_avg": torch.zeros(())}),
    "a moment of another shape": lambda tensors: tensors.update({"embedding.weight/exp_avg": torch.zeros(3)}),
    "a moment of another type": lambda tensors: tensors.update({"norm.weight/exp_avg": torch.zeros(8).double()}),
    "a moment of nothing": lambda tensors: tensors.update({"lm_head.weight/exp_avg": torch.zeros(8)}),
    "a missing probe": lambda tensors: tensors.pop("probes/length_M"),
    "a probe of another shape": lambda tensors: tensors.update({"probes/update_MS": torch.zeros(2, 2)}),
    "a probe of another type": lambda tensors: tensors.update({"probes/count_M": torch.zeros(2, dtype=torch.int64)}),
    "a probe of nothing": lambda tensors: tensors.update({"probes/mine": torch.zeros(2)}),
    "no random state": lambda tensors: tensors.pop("rng.cpu"),
    "half a random state": lambda tensors: tensors.update({"rng.cpu": tensors["rng.cpu"][:100]}),
}


@pytest.mark.parametrize("change", FOREIGN)
def test_a_foreign_tensor_under_an_honest_manifest_is_a_message_and_no_traceback(tmp_path, change):
    model, optimizers = make()
    step(model, optimizers, 1)
    probes = WeightPath(model).tensors
    path = save(tmp_path, 1, model, optimizers, probes=probes)
    checkpoint.load_training_state(path, *make(), probes)
    tensors = load_file(path / "optimizer.safetensors")
    FOREIGN[change](tensors)
    rewrite(path, "optimizer.safetensors", lambda file: save_file({k: t.clone() for k, t in tensors.items()}, file))
    checkpoint.verify(path)
    with pytest.raises(UserError, match=r"step-00000001/optimizer\.safetensors is damaged or was not written"):
        checkpoint.load_training_state(path, *make(), probes)


def test_weights_of_another_network_are_a_message(tmp_path):
    path = save(tmp_path, 1, *make())
    other = GPT(ModelConfig(activation="swish_beta", n_layer=1, n_head=2, d_model=16, context=4), 11)
    with pytest.raises(UserError, match=r"is \[\d+, 8\] torch.float32, and would be \[\d+, 16\] torch.float32"):
        checkpoint.load_weights(path, other)
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.act\.beta is \[\] torch.float32, and would be unknown"):
        checkpoint.load_weights(path, make(activation="gelu")[0])


@pytest.mark.parametrize(
    "change",
    [
        {"step": 2},
        {"environment": {"threads": []}},
        {"wandb_id": "../x"},
        {"wandb_best": 10**400},
        {"mine": 1},
        {"config": {}},
    ],
    ids=str,
)
def test_a_foreign_state_is_a_message(tmp_path, change):
    path = save(tmp_path, 1, *make())
    config = config_of(make()[0])
    state = read_state(path, config)
    (path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(UserError, match=r"state\.json is damaged or was not written"):
        read_state(path, config)


def test_a_checkpoint_beyond_the_last_step_is_foreign(tmp_path):
    path = save(tmp_path, 10**6, *make())  # the run has 10**9 tokens in steps of 64
    assert read_state(path, config_of(make()[0]))["step"] == 10**6
    path = save(tmp_path, 10**8, *make())
    with pytest.raises(UserError, match="beyond the last step, 15625000"):
        read_state(path, config_of(make()[0]))


def test_a_checkpoint_that_its_run_drops_while_it_is_read_is_not_damaged(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, *make())

    verify = checkpoint.verify

    def meanwhile(path):
        monkeypatch.setattr(checkpoint, "verify", verify)
        save(tmp_path, 2, *make(), keep=1)
        verify(path)

    monkeypatch.setattr(checkpoint, "verify", meanwhile)
    assert newest(tmp_path) == tmp_path / "step-00000002"
    assert capsys.readouterr().err == ""


def test_what_was_just_saved_is_never_pruned_in_favour_of_a_later_damaged_one(tmp_path):
    for n in (50, 100):
        path = save(tmp_path, n, *make())
    (path / "state.json").unlink()
    save(tmp_path, 60, *make(), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000060"]
