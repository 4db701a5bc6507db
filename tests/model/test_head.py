import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from test_generate import prompts, uncached
from test_gpt import TOKENS, loud_model
from torch.autograd.graph import saved_tensors_hooks

from model.config import ModelConfig
from model.decoder import decoding
from model.generate import generate
from model.gpt import GPT
from model.heads import HEADS, cross_entropy, widen
from training.loop import train

GPT2_VOCAB = 50_257

# each head's distribution before it is normalised, at the start, from its scores
MASSES: dict[str, Callable[[NDArray], NDArray]] = {
    "softmax": np.exp,
    "sigmoid": lambda z: expit(z - np.log(z.shape[-1] - 1)),
    "normalized_sigmoid": expit,
    "sigsoftmax": lambda z: np.exp(z) * expit(z),
}
every_head = pytest.mark.parametrize("name", HEADS)


def draw(tokens: int = 3, n_vocab: int = GPT2_VOCAB, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(tokens, n_vocab, generator=torch.Generator().manual_seed(0))


def with_head(name: Any, n_vocab: int = 500) -> GPT:
    return GPT(ModelConfig(n_layer=2, n_head=2, d_model=48, context=32, head=name), n_vocab)


def test_config_names_the_heads_that_there_are():
    literal, _ = get_args(ModelConfig.__dataclass_fields__["head"].type)
    assert get_args(literal) == tuple(HEADS) == tuple(MASSES)


@every_head
def test_softmax_of_the_logits_is_the_head_normalised(name):
    z_NV = draw()
    with torch.no_grad():
        p_NV = HEADS[name](GPT2_VOCAB)(z_NV).softmax(-1)
    mass_NV = MASSES[name](z_NV.double().numpy())
    np.testing.assert_allclose(p_NV.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(p_NV, mass_NV / mass_NV.sum(-1, keepdims=True), rtol=1e-4)


@every_head
def test_objective_is_that_of_the_paper(name):
    z_NV, targets_N = draw(), torch.tensor([0, 7, GPT2_VOCAB - 1])
    loss = HEADS[name](GPT2_VOCAB).loss(z_NV, targets_N).item()
    mass_NV = MASSES[name](z_NV.double().numpy())
    target_N = mass_NV[np.arange(3), targets_N]
    if name == "sigmoid":
        no_NV = np.log1p(-mass_NV)
        expected_N = -(np.log(target_N) + no_NV.sum(-1) - no_NV[np.arange(3), targets_N])
    else:
        expected_N = -np.log(target_N / mass_NV.sum(-1))
    assert loss == pytest.approx(expected_N.mean(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_cross_entropy_and_its_gradient_are_torchs(scale, dtype):
    logits_NV, targets_N = draw(4, 11, scale).to(dtype).requires_grad_(), torch.tensor([0, 7, 10, 7])
    found, expected = cross_entropy(logits_NV, targets_N), F.cross_entropy(widen(logits_NV), targets_N)
    assert type(found.grad_fn).__name__ == "_CrossEntropyBackward"
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(3 * loss, logits_NV)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


@every_head
def test_loss_starts_at_that_of_a_uniform_guess(name):
    model = with_head(name, GPT2_VOCAB)
    x_BT, y_BT = torch.randint(GPT2_VOCAB, (2, 2, 32), generator=torch.Generator().manual_seed(0))
    uniform = math.log(GPT2_VOCAB)
    assert model.loss(x_BT, y_BT).item() == pytest.approx(uniform, rel=0.02)
    assert model.train_loss(x_BT, y_BT).item() == pytest.approx(uniform + (name == "sigmoid"), rel=0.02)


@every_head
def test_gradients_are_those_of_finite_differences(name):
    head, targets_N = HEADS[name](9).double(), torch.tensor([0, 8, 3])
    weights = tuple(head.parameters())
    assert [w.shape for w in weights] == ([torch.Size(())] if name == "sigmoid" else [])
    z_NV = draw(3, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z_NV, *_: head.loss(z_NV, targets_N), (z_NV, *weights))
    assert torch.autograd.gradcheck(lambda z_NV, *_: head(z_NV), (z_NV, *weights))


@every_head
def test_far_out_scores_keep_loss_and_gradient_finite(name):
    z_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss = HEADS[name](3).loss(z_NV, torch.tensor([1, 2]))
    loss.backward()
    assert loss.isfinite()
    assert z_NV.grad is not None
    assert z_NV.grad.isfinite().all()


@every_head
def test_training_loss_is_the_objective_of_the_scores(name):
    model = loud_model("gelu", head=name)
    x_BT, y_BT = TOKENS[:, :-1], TOKENS[:, 1:]
    z_BTV = model.scores(x_BT)
    assert z_BTV.shape == (2, 7, 11)
    assert torch.equal(model(x_BT), model.head(z_BTV))
    loss = model.train_loss(x_BT, y_BT)
    assert torch.equal(loss, model.head.loss(z_BTV.flatten(0, 1), y_BT.flatten()))
    assert math.isclose(loss.item(), model.loss(x_BT, y_BT).item(), rel_tol=1e-6) == (name != "sigmoid")
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_head
def test_bf16_scores_lose_no_more_than_their_own_rounding(name):
    z_NV, targets_N = draw(scale=1).bfloat16(), torch.tensor([0, 7, GPT2_VOCAB - 1])
    head = HEADS[name](GPT2_VOCAB)
    loss = head.loss(z_NV, targets_N)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(head.loss(z_NV.float(), targets_N).item(), rel=1e-6)


@every_head
def test_memory_is_a_few_copies_of_the_scores(name):
    z_NV, held = draw(8).requires_grad_(), {}
    with saved_tensors_hooks(lambda t: held.update({t.untyped_storage().data_ptr(): t}) or t, lambda t: t):
        loss = HEADS[name](GPT2_VOCAB).loss(z_NV, torch.arange(8))
    copies = sum(t.numel() for t in held.values()) / z_NV.numel()
    assert copies <= {"softmax": 1, "sigmoid": 1, "normalized_sigmoid": 3, "sigsoftmax": 3}[name] + 0.01
    assert loss.requires_grad


@every_head
@torch.no_grad()
def test_logits_with_a_cache_are_those_of_one_pass(name):
    model = loud_model("swiglu", head=name)
    expected_BTV = model(TOKENS[:, :4])
    with decoding(model, 2) as decoder:
        for start, end in [(0, 3), (3, 4)]:
            logits_BV = decoder.read(TOKENS[:, start:end])
            torch.testing.assert_close(logits_BV, expected_BTV[:, end - 1], rtol=1e-10, atol=1e-10)


@every_head
def test_text_is_that_of_an_uncached_loop(name):
    model, prompt_BT = loud_model("gelu", head=name), prompts(4, 3)
    greedy_BN = generate(model, prompt_BT, 20, temperature=0)
    assert greedy_BN.tolist() == [uncached(model, row, 20) for row in prompt_BT.tolist()]


@every_head
def test_draws_follow_the_head(name):
    model, prompt_BT = loud_model("gelu", head=name), prompts(1, 4)
    with torch.no_grad():
        model.embedding.weight /= 5  # several tokens are likely
        z_V = model.scores(prompt_BT)[0, -1].numpy()
    mass_V = MASSES[name](z_V)
    new_B1 = generate(model, prompt_BT.expand(20_000, -1), 1, generator=torch.Generator().manual_seed(0))
    share_V = torch.bincount(new_B1.flatten(), minlength=11) / 20_000
    np.testing.assert_allclose(share_V, mass_V / mass_V.sum(), atol=0.015)


@every_head
def test_a_run_trains_on_the_objective_and_is_scored_in_nats_per_token(name, tiny, tmp_path):
    train(tiny(model={"head": name}, train={"log_every": 1}), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    objective = [record["train/loss"] for record in records if "train/loss" in record]
    score = [record["val/loss"] for record in records if "val/loss" in record]
    assert objective[0] == pytest.approx(math.log(256) + (name == "sigmoid"), rel=0.03)
    assert score[0] == pytest.approx(math.log(256), rel=0.02)
    assert objective[-1] < 0.8 * objective[0]
    assert score[-1] < 0.8 * score[0]
