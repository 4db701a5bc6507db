import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.dataset import Split
from model.config import ModelConfig
from model.gpt import GPT
from training.evaluate import evaluate


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
