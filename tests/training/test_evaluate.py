import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from data.dataset import Split
from model.config import ModelConfig
from model.gpt import GPT
from training import evaluate as scoring
from training.config import build
from training.device import widest
from training.evaluate import evaluate
from training.optim import build_optimizers
from training.probes import path
from training.probes.probes import Probes
from training.step import train_step


@pytest.fixture
def model():
    return GPT(ModelConfig(n_layer=1, n_head=2, d_model=8, context=5), 7, seed=3)


@pytest.mark.parametrize(("n_tokens", "batch_size"), [(41, 3), (43, 2), (6, 4), (4, 4)])
def test_score_is_the_mean_over_every_token_but_the_first(model, n_tokens, batch_size):
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
    assert (widest(torch.device("mps")), widest(torch.device("cuda"))) == (torch.float32, torch.float64)
    for module in (scoring, path):
        monkeypatch.setattr(module, "widest", lambda _: torch.float32)
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
