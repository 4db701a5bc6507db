import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_activations import GATED, hidden
from test_attention import reference_attention

from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.decoder import decoding
from model.gpt import GPT

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
every_name = pytest.mark.parametrize("name", ACTIVATIONS)


def loud_model(name: str, **changes: Any) -> GPT:
    """A small network in float64, its matrices far above their initial size: attention is sharp, neurons are bent."""
    config = ModelConfig(activation=name, **{"n_layer": 2, "n_head": 2, "d_model": 12, "context": 8, **changes})
    model = GPT(config, n_vocab=11).double()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim == 2:
                weight *= 30 if "blocks" in key else 10
            elif weight.ndim == 1 and ".act." not in key:
                weight[:] = torch.linspace(0.5, 2, len(weight))
    return model


def reference_logits(model: GPT, tokens_T: NDArray) -> NDArray:
    """The whole network once more, in numpy, from its weights alone."""
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    c = model.config

    def norm(x_TD: NDArray, gain: str) -> NDArray:
        if c.norm == "none" and gain != "norm":
            return x_TD
        if c.norm == "layer":
            x_TD = x_TD - x_TD.mean(1, keepdims=True)
        return x_TD / np.sqrt((x_TD**2).mean(1, keepdims=True) + 1e-6) * w[f"{gain}.weight"]

    x_TD = w["embedding.weight"][tokens_T]
    for i in range(c.n_layer):
        b = f"blocks.{i}"
        attn = w[f"{b}.attn.qkv.weight"], w[f"{b}.attn.out.weight"]
        x_TD = x_TD + reference_attention(norm(x_TD, f"{b}.attn_norm"), *attn, c.n_head)
        y_TD = norm(x_TD, f"{b}.ffn_norm")
        u_TF = y_TD @ w[f"{b}.ffn.up.weight"].T
        h_TF = hidden(c.activation, u_TF, y_TD @ w[f"{b}.ffn.gate.weight"].T if c.activation in GATED else None)
        y_TD = h_TF @ w[f"{b}.ffn.down.weight"].T + w.get(f"{b}.ffn.down.bias", 0)
        x_TD = x_TD + y_TD if c.ffn_residual else y_TD
    return norm(x_TD, "norm") @ w["embedding.weight"].T


@every_name
def test_logits_are_those_of_an_independent_forward(name):
    model = loud_model(name)
    for tokens_T, logits_TV in zip(TOKENS, model(TOKENS).detach(), strict=True):
        np.testing.assert_allclose(logits_TV, reference_logits(model, tokens_T.numpy()), rtol=1e-5, atol=1e-5)


OPTIONS = [{"norm": "layer"}, {"norm": "none"}, {"ffn_residual": False}, {"ffn_bias": True}]
OPTIONS += [{"norm": "none", "ffn_residual": False, "ffn_bias": True}]


@pytest.mark.parametrize("name", ["gelu", "sigmoid", "swiglu"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_are_those_of_the_independent_forward(name, options):
    model = loud_model(name, **options)
    logits_TV = model(TOKENS[:1]).detach()[0]
    np.testing.assert_allclose(logits_TV, reference_logits(model, TOKENS[0].numpy()), rtol=1e-5, atol=1e-5)
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_norm_sets_which_weights_there_are():
    of = {norm: {k for k in loud_model("gelu", norm=norm).state_dict() if "norm" in k} for norm in ("rms", "layer")}
    assert of["rms"] == of["layer"]
    assert len(of["rms"]) == 5
    assert {k for k in loud_model("gelu", norm="none").state_dict() if "norm" in k} == {"norm.weight"}


@every_name
def test_a_position_depends_on_itself_and_earlier_ones_only(name):
    model, seen = loud_model(name), []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits_TV = model(TOKENS[:1])[0]
    for t in range(8):
        (gradient_TD,) = torch.autograd.grad(logits_TV[t] @ torch.arange(11.0).double(), seen[0], retain_graph=True)
        reached = (gradient_TD[0] != 0).any(1).tolist()
        assert reached == [True] * (t + 1) + [False] * (7 - t)


@every_name
def test_initial_loss_is_that_of_a_uniform_guess(name):
    model = GPT(ModelConfig(activation=name, n_layer=2, n_head=2, d_model=48, context=32), n_vocab=500)
    x_BT, y_BT = torch.randint(500, (2, 8, 32), generator=torch.Generator().manual_seed(0))
    assert model.loss(x_BT, y_BT).item() == pytest.approx(math.log(500), abs=0.05)


def test_loss_is_the_mean_or_the_sum_of_surprisals():
    model = loud_model("gelu")
    logits = reference_logits(model, TOKENS[0].numpy())
    surprisal_T = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), TOKENS[1].numpy()]
    total = model.token_losses(TOKENS[:1], TOKENS[1:]).sum().item()
    assert total == pytest.approx(surprisal_T.sum(), rel=1e-5)
    assert model.loss(TOKENS[:1], TOKENS[1:]).item() == pytest.approx(total / 8, rel=1e-6)


def test_embedding_is_tied():
    model = loud_model("gelu")
    assert [key for key, p in model.named_parameters() if 11 in p.shape] == ["embedding.weight"]
    model(TOKENS)[..., 10].sum().backward()  # token 10 is read nowhere, so its row learns as an output only
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad[10].abs().min() > 0


@every_name
def test_every_weight_learns(name):
    model = loud_model(name)
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_name
def test_bf16_autocast_stays_close(name):
    model = GPT(ModelConfig(activation=name, n_layer=2, n_head=2, d_model=48, context=8), n_vocab=11)
    exact = model.loss(TOKENS, TOKENS.flip(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(TOKENS, TOKENS.flip(1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.01)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bf16_trains_every_option(options):
    model = GPT(ModelConfig(n_layer=2, n_head=2, d_model=48, context=8, **options), n_vocab=11)
    model.train_loss(TOKENS, TOKENS.flip(1)).backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train_loss(TOKENS, TOKENS.flip(1))
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert (p.grad - exact[name]).norm() < 0.1 * exact[name].norm()


def test_every_name_changes_the_logits():
    with torch.no_grad():
        of = {name: loud_model(name)(TOKENS) for name in ACTIVATIONS}  # weights are equal where shapes are
    same = [(a, b) for a, b in combinations(of, 2) if (of[a] - of[b]).abs().max() < 1e-5]  # rounding is near 1e-14
    assert same == []


@every_name
@torch.no_grad()
def test_logits_with_a_cache_are_those_of_one_pass(name):
    model = loud_model(name)
    expected_BTV = model(TOKENS)
    with decoding(model, 2) as decoder:
        for start, end in [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]:
            logits_BV = decoder.read(TOKENS[:, start:end])
            torch.testing.assert_close(logits_BV, expected_BTV[:, end - 1], rtol=1e-10, atol=1e-10)
        assert decoder.length == 8


def test_rotary_positions_are_no_weights():
    assert all("rotary" not in key for key in loud_model("gelu").state_dict())
