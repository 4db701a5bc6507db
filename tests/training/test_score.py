import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import eval as eval_door  # the builtin keeps its name
from errors import UserError, door
from model.activations import ACTIVATIONS, Activation
from training.loop import train
from training.sample import load_run, sample
from training.score import score_run, score_text


class Drawn(nn.Module):
    """A leaky ReLU whose slope is drawn, and kept in no checkpoint."""

    slope: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.rand(()), persistent=False)

    def forward(self, u):
        return torch.where(u > 0, u, self.slope * u)


class Noisy(nn.Module):
    """A ReLU that adds noise in training, as torch's RReLU has it in its slope."""

    def forward(self, u):
        return u.relu() + 0.5 * torch.randn_like(u) if self.training else u.relu()


def test_a_damaged_checkpoint_is_named_once_and_the_one_before_is_scored(tiny, tmp_path, capsys):
    train(tiny(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000020" / "state.json").unlink()
    capsys.readouterr()
    score_run(tmp_path / "run", "cpu")
    printed = capsys.readouterr()
    assert printed.err.count("warning: step-00000020: state.json is missing") == 1
    assert "step 18" in printed.out


def test_an_activation_that_its_factory_draws_is_the_one_that_was_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "drawn", Activation(Drawn))
    summary = train(tiny(model={"activation": "drawn"}), tmp_path / "run")
    torch.manual_seed(1234)
    assert score_run(tmp_path / "run", "cpu")["val"].loss == summary["val/loss"]


def test_an_activation_that_draws_in_training_is_scored_probed_and_sampled_without_its_draws(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(ACTIVATIONS, "noisy", Activation(Noisy))
    losses = set()
    for probes in (0, 2):
        folder, model = tmp_path / f"probes{probes}", {"activation": "noisy"}
        summary = train(tiny(model=model, train={"probes": probes, "eval_every": 8 - probes}), folder)
        assert score_run(folder, "cpu")["val"].loss == summary["val/loss"]
        loaded, tokenizer, _ = load_run(folder, torch.device("cpu"))
        assert summary["sample/text"] == sample(loaded, tokenizer, "", 300, temperature=0.8, top_k=50)[0]
        losses.add(summary["val/loss"])
    assert len(losses) == 1  # measuring more, and more often, takes none of training's draws


@pytest.fixture
def run(tiny, tmp_path, capsys):
    train(tiny(), tmp_path / "run")
    capsys.readouterr()
    return tmp_path / "run"


def test_another_text_is_scored_whole_with_the_tokenizer_of_the_run(run, tmp_path, monkeypatch, capsys):
    texts = ["a queen, é\n" * 9, "to speak of\nthe night\n", ""]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": "wrong", "body": text}) + "\n" for text in texts))
    monkeypatch.setattr(sys, "argv", ["eval.py", str(run), f"--data.corpus={path}", "--data.column=body"])
    assert door(eval_door.main) == 0
    printed = capsys.readouterr().out
    model, tokenizer, _ = load_run(run, torch.device("cpu"))
    ids = [token for text in texts[:2] for token in [tokenizer.eot, *text.encode()]]
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[start : start + 17])
        with torch.no_grad():
            nats += F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum").item()
    score = score_text(run, "cpu", str(path), "body")
    assert score.loss == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len("".join(texts).encode()), rel=1e-5)
    figures = f"loss {score.loss:.4f} nats/token  perplexity {score.perplexity:.3f}"
    assert f"{path}: all 2 documents {figures}  {score.bits_per_byte:.4f} bits/byte" in printed
    assert f"({len(ids) - 1:,} tokens, step 20, fp32)" in printed


NOT_SCORED = [
    ("corpus.txt", None, "is trained on .*: leave --data.corpus out"),
    ("corpus.txt", "body", "is trained on .*: leave --data.corpus out"),
    ("./x/../corpus.txt", None, "is trained on .*: leave --data.corpus out"),
    ("copy.txt", None, "is trained on .*: leave --data.corpus out"),
    ("corpse.txt", None, r"no such file. Did you mean '.*corpus\.txt'"),
    ("empty.txt", None, "is empty"),
    ("rows.jsonl", "bodi", "unknown column 'bodi'. Did you mean 'body'"),
    ("rows.jsonl", "", "data.column = ''"),
]


def test_a_text_that_cannot_be_scored_is_refused_with_the_reason(run, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "copy.txt").write_bytes((tmp_path / "corpus.txt").read_bytes())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    for name, column, said in NOT_SCORED:
        with pytest.raises(UserError, match=said):
            score_text(run, "cpu", f"{tmp_path}/{name}", column)
