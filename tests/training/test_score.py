"""The score of a model on a split, on another text, and of a run's checkpoint."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Noisy
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import eval as eval_door  # the builtin keeps its name
from data.dataset import Split
from errors import UserError, door
from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.gpt import GPT
from training import evaluate as scoring
from training.config import build
from training.device import widest_float
from training.evaluate import evaluate
from training.loop import train
from training.optim import build_optimizers
from training.probes import path
from training.probes.probes import Probes
from training.sample import load_model, sample
from training.score import score_run, score_text
from training.step import train_step

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return GPT(ModelConfig(n_layer=1, n_head=2, d_model=8, context=5), 7, seed=3)


@pytest.mark.parametrize(("n_tokens", "batch_size"), [(41, 3), (43, 2), (6, 4), (4, 4)])
def test_a_split_is_scored_as_by_a_plain_loop_over_its_windows(model, n_tokens, batch_size):
    tokens_N = np.random.default_rng(0).integers(7, size=n_tokens).astype(np.uint16)
    nats = []
    for start in range(0, n_tokens - 1, 5):  # one window at a time
        x = torch.tensor(tokens_N[start : min(start + 5, n_tokens - 1)].astype(np.int64))
        y = torch.tensor(tokens_N[start + 1 : start + 1 + len(x)].astype(np.int64))
        nats += F.cross_entropy(model(x[None])[0], y, reduction="none").tolist()
    assert len(nats) == n_tokens - 1
    score = evaluate(model, Split(tokens_N, n_bytes=100, n_documents=1), batch_size)
    assert score.loss == pytest.approx(np.mean(nats), rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / 100, rel=1e-6)
    whole = (n_tokens - 1) // 5
    assert score.windows == pytest.approx(np.reshape(nats[: 5 * whole], (whole, 5)).mean(axis=1), rel=1e-6)


def test_a_uniform_model_scores_the_logarithm_of_the_vocabulary(model):
    with torch.no_grad():
        model.embedding.weight.zero_()
    score = evaluate(model, Split(np.arange(30, dtype=np.uint16) % 7, n_bytes=29, n_documents=1), 2)
    assert score.loss == pytest.approx(math.log(7))
    assert score.bits_per_byte == pytest.approx(math.log2(7))


def test_a_loss_that_is_no_number_has_no_perplexity_and_one_beyond_numbers_an_infinite_one():
    split = Split(np.zeros(11, dtype=np.uint16), n_bytes=11, n_documents=1)
    assert math.isnan(scoring.from_nats(np.full(2, math.nan), split, 5).perplexity)
    assert scoring.from_nats(np.full(2, 5e4), split, 5).perplexity == math.inf


def test_every_part_of_a_model_is_left_in_the_mode_that_it_was_in(model):
    model.blocks[0].ffn.act.eval()  # by its maker, on purpose
    before = [module.training for module in model.modules()]
    evaluate(model, Split(np.arange(7, dtype=np.uint16), n_bytes=9, n_documents=1), 2)
    assert [module.training for module in model.modules()] == before
    assert {*before} == {True, False}


class Doubles(TorchDispatchMode):
    """Keeps the names of the operations whose result is in float64."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.names.add(func.overloadpacket.__name__)
        return made


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_device_without_float64_needs_none_to_train_probe_and_score(monkeypatch, optimizer):
    assert (widest_float(torch.device("mps")), widest_float(torch.device("cuda"))) == (torch.float32, torch.float64)
    for module in (scoring, path):
        monkeypatch.setattr(module, "widest_float", lambda _: torch.float32)
    sizes = {"n_layer": 1, "n_head": 2, "d_model": 8, "context": 5}
    config = build({"model": sizes, "train": {"batch_size": 3, "optimizer": optimizer}}, "test")
    split = Split(np.random.default_rng(0).integers(7, size=200).astype(np.uint16), n_bytes=100, n_documents=1)
    model = GPT(config.model, 7)
    optimizers, doubles = build_optimizers(model, config.train), Doubles()
    with doubles:
        probes = Probes(model, optimizers, split, 2, 2)
        train_step(model, optimizers, split.tokens_N, config, 0, 1e-3, "fp32")
        probes.follow()
        assert probes.measure(2)
    assert doubles.names == set()
    with doubles:
        evaluate(model, split, 4)
    assert doubles.names == {"_to_copy", "detach"}  # the windows' nats, on the CPU by then


class Drawn(nn.Module):
    """A leaky ReLU whose slope is drawn, and kept in no checkpoint."""

    slope: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.rand(()), persistent=False)

    def forward(self, u):
        return torch.where(u > 0, u, self.slope * u)


def test_an_activation_that_its_factory_draws_is_the_one_that_was_trained(tiny, tmp_path, monkeypatch, no_sample):
    monkeypatch.setitem(ACTIVATIONS, "drawn", Drawn)
    summary = train(tiny(model={"activation": "drawn"}), tmp_path / "run")
    torch.manual_seed(1234)
    assert score_run(tmp_path / "run", "cpu")["val"].loss == summary["val/loss"]


def test_an_activation_that_draws_in_training_is_scored_probed_and_sampled_without_its_draws(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(ACTIVATIONS, "noisy", Noisy)
    losses = set()
    for probes in (0, 2):
        folder, model = tmp_path / f"probes{probes}", {"activation": "noisy"}
        summary = train(tiny(model=model, train={"probes": probes, "eval_every": 8 - probes}), folder)
        assert score_run(folder, "cpu")["val"].loss == summary["val/loss"]
        loaded, tokenizer, _ = load_model(folder, CPU)
        assert summary["sample/text"] == sample(loaded, tokenizer, "", 300, temperature=0.8, top_k=50)[0]
        losses.add(summary["val/loss"])
    assert len(losses) == 1  # measuring more, and more often, takes none of training's draws


@pytest.fixture
def run(tiny, tmp_path, capsys, no_sample):
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
    model, tokenizer, _ = load_model(run, CPU)
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
