"""Each head against its distribution and its objective in numpy."""

import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers import TOKENS, loud_model, without_gradient
from numpy.typing import NDArray
from scipy.special import expit

from model.config import ModelConfig
from model.gpt import GPT
from model.heads import HEADS
from training.loop import train

GPT2_VOCAB = 50_257

# Each head's distribution before it is normalised, at the start, from its scores.
MASSES: dict[str, Callable[[NDArray], NDArray]] = {
    "softmax": np.exp,
    "sigmoid": lambda z: expit(z - np.log(z.shape[-1] - 1)),
    "normalized_sigmoid": expit,
    "sigsoftmax": lambda z: np.exp(z) * expit(z),
}
every_head = pytest.mark.parametrize("name", HEADS)


def scores(tokens: int = 3, n_vocab: int = GPT2_VOCAB, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(tokens, n_vocab, generator=torch.Generator().manual_seed(0))


def test_config_names_the_heads_that_there_are():
    literal, _ = get_args(ModelConfig.__dataclass_fields__["head"].type)
    assert get_args(literal) == tuple(HEADS) == tuple(MASSES)


@every_head
def test_softmax_of_the_logits_is_the_head_normalised(name):
    z_NV = scores()
    with torch.no_grad():
        p_NV = HEADS[name](GPT2_VOCAB)(z_NV).softmax(-1)
    mass_NV = MASSES[name](z_NV.double().numpy())
    np.testing.assert_allclose(p_NV, mass_NV / mass_NV.sum(-1, keepdims=True), rtol=1e-4)


@every_head
def test_objective_of_each_token_is_that_of_the_paper(name):
    z_NV, targets_N = scores(), torch.tensor([0, 7, GPT2_VOCAB - 1])
    loss_N = HEADS[name](GPT2_VOCAB).loss(z_NV, targets_N).detach()
    mass_NV = MASSES[name](z_NV.double().numpy())
    target_N = mass_NV[np.arange(3), targets_N]
    expected_N = -np.log(target_N / mass_NV.sum(-1))
    if name == "sigmoid":  # binary cross-entropy: yes for the target, no for all others
        no_NV = np.log1p(-mass_NV)
        expected_N = -(np.log(target_N) + no_NV.sum(-1) - no_NV[np.arange(3), targets_N])
    np.testing.assert_allclose(loss_N, expected_N, rtol=1e-5)


@every_head
def test_loss_starts_at_that_of_a_uniform_guess(name):
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=24, context=16, head=name), GPT2_VOCAB)
    x_BT, y_BT = torch.randint(GPT2_VOCAB, (2, 1, 16), generator=torch.Generator().manual_seed(0))
    uniform = math.log(GPT2_VOCAB)
    assert model(x_BT, y_BT, per_token=True).mean().item() == pytest.approx(uniform, rel=0.02)
    assert model(x_BT, y_BT).item() == pytest.approx(uniform + (name == "sigmoid"), rel=0.02)


@every_head
def test_far_out_scores_keep_loss_and_gradient_finite(name):
    z_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss_N = HEADS[name](3).loss(z_NV, torch.tensor([1, 2]))
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), z_NV)
    assert loss_N.isfinite().all()
    assert gradient_NV.isfinite().all()


@every_head
def test_bf16_scores_lose_no_more_than_their_own_rounding(name):
    z_NV, targets_N = scores(scale=1).bfloat16(), torch.tensor([0, 7, GPT2_VOCAB - 1])
    head = HEADS[name](GPT2_VOCAB)
    loss_N = head.loss(z_NV, targets_N)
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N, head.loss(z_NV.float(), targets_N), rtol=1e-6, atol=0)


@every_head
def test_training_is_on_the_objective_and_scoring_on_the_cross_entropy(name):
    model, x_BT, y_BT = loud_model(head=name), TOKENS[:, :-1], TOKENS[:, 1:]
    scores = []
    handle = model.head.register_forward_pre_hook(lambda head, inputs: scores.append(inputs[0]))
    logits_BTV = model(x_BT)
    handle.remove()
    (z_BTV,) = scores
    assert torch.equal(logits_BTV, model.head(z_BTV))
    loss = model(x_BT, y_BT)
    torch.testing.assert_close(loss, model.head.loss(z_BTV.flatten(0, 1), y_BT.flatten()).mean())
    surprisal_BT = -model(x_BT).log_softmax(-1).gather(-1, y_BT[..., None]).squeeze(-1)
    torch.testing.assert_close(model(x_BT, y_BT, per_token=True), surprisal_BT)
    assert math.isclose(loss.item(), surprisal_BT.mean().item(), rel_tol=1e-6) == (name != "sigmoid")
    loss.backward()
    assert without_gradient(model) == []


def test_a_run_trains_on_the_objective_and_is_scored_in_nats_per_token(tiny, tmp_path):
    changes: dict[str, Any] = {"model": {"head": "sigmoid"}, "train": {"log_every": 1}}
    train(tiny(**changes), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    objective = [record["train/loss"] for record in records if "train/loss" in record]
    score = [record["val/loss"] for record in records if "val/loss" in record]
    assert objective[0] == pytest.approx(math.log(256) + 1, rel=0.03)
    assert score[0] == pytest.approx(math.log(256), rel=0.02)
    assert objective[-1] < 0.8 * objective[0]
    assert score[-1] < 0.8 * score[0]
