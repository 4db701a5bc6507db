"""The network against itself in numpy, and what has to hold of attention, cache and loss."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TOKENS, loud_model, without_gradient
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from model.config import ModelConfig
from model.gpt import GPT, Cache, attend, rotary_table, rotate
from training.device import autocast

OPTIONS = [{"norm": "none"}, {"ffn_residual": False}, {"ffn_bias": "zero"}]
OPTIONS += [{"norm": "none", "ffn_residual": False, "ffn_bias": "zero"}]
FORMULAS = {
    "relu": lambda u: np.maximum(0, u),
    "gelu": lambda u: u * ndtr(u),
    "swiglu": lambda u: u * expit(u),
    "xielu": lambda u: np.where(u > 0, 0.8 * u**2, 0.8 * (np.expm1(np.minimum(u, 0)) - u)) + u / 2,
    "plugin": lambda u: u / 2 + np.sin(u),
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def reference_heads(q_TK: NDArray, k_SK: NDArray, v_SK: NDArray, causal: bool) -> NDArray:
    """Attention of one head, position by position."""
    y_TK = np.zeros_like(q_TK)
    for t, q_K in enumerate(q_TK):
        seen = t + 1 if causal else len(k_SK)
        score_S = k_SK[:seen] @ q_K / math.sqrt(len(q_K))
        weight_S = np.exp(score_S - score_S.max())
        y_TK[t] = weight_S / weight_S.sum() @ v_SK[:seen]
    return y_TK


def turned(z_TK: NDArray) -> NDArray:
    """Rotary positions: the pair (k, k + K/2) is a complex number that turns."""
    T, K = z_TK.shape
    turn_TK = np.exp(1j * np.outer(np.arange(T), 1e4 ** (-2 * np.arange(K // 2) / K)))
    turned_TK = turn_TK * (z_TK[:, : K // 2] + 1j * z_TK[:, K // 2 :])
    return np.concatenate((np.real(turned_TK), np.imag(turned_TK)), 1)


def reference_attention(x_TD: NDArray, qkv: NDArray, out: NDArray, n_head: int) -> NDArray:
    D = x_TD.shape[1]
    K = D // n_head
    heads = []
    for head in range(n_head):
        q_TK, k_TK, v_TK = (x_TD @ qkv[i * D + head * K : i * D + (head + 1) * K].T for i in range(3))
        heads.append(reference_heads(turned(q_TK), turned(k_TK), v_TK, causal=True))
    return np.concatenate(heads, 1) @ out.T


def reference_logits(model: GPT, tokens_T: NDArray) -> NDArray:
    """The whole network once more, in numpy, from its weights alone."""
    w = {key: value.numpy() for key, value in model.state_dict().items()}
    c, formula = model.config, FORMULAS[model.config.activation]

    def norm(x_TD: NDArray, gain: str) -> NDArray:
        if c.norm == "none" and gain != "norm":
            return x_TD
        return x_TD / np.sqrt((x_TD**2).mean(1, keepdims=True) + 1e-6) * w[f"{gain}.weight"]

    x_TD = w["embedding.weight"][tokens_T]
    for i in range(c.n_layer):
        b = f"blocks.{i}"
        attn = w[f"{b}.attn.qkv.weight"], w[f"{b}.attn.out.weight"]
        x_TD = x_TD + reference_attention(norm(x_TD, f"{b}.attn_norm"), *attn, c.n_head)
        y_TD = norm(x_TD, f"{b}.ffn_norm")
        u_TF = y_TD @ w[f"{b}.ffn.up.weight"].T
        gated = c.activation == "swiglu"
        h_TF = formula(y_TD @ w[f"{b}.ffn.gate.weight"].T) * u_TF if gated else formula(u_TF)
        y_TD = h_TF @ w[f"{b}.ffn.down.weight"].T + w.get(f"{b}.ffn.down.bias", 0)
        x_TD = x_TD + y_TD if c.ffn_residual else y_TD
    return norm(x_TD, "norm") @ w["embedding.weight"][: model.n_vocab].T


# --- the forward pass


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_logits_are_those_of_an_independent_forward(activation, options):
    model = loud_model(activation, **options)
    for tokens_T, logits_TV in zip(TOKENS, model(TOKENS).detach(), strict=True):
        np.testing.assert_allclose(logits_TV, reference_logits(model, tokens_T.numpy()), rtol=1e-5, atol=1e-5)
    model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert without_gradient(model) == []


def test_act_is_a_submodule_that_sees_the_pre_activation(activation):
    ffn, seen = loud_model(activation).get_submodule("blocks.0.ffn"), []
    ffn.get_submodule("act").register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    x_BTD = normal(2, 3, 12)
    ffn(x_BTD)
    layers = ["gate", "up"] if activation == "swiglu" else ["up"]
    for name, u_BTF in zip(layers, seen[0], strict=False):
        assert torch.equal(u_BTF, ffn.get_submodule(name)(x_BTD))
    assert seen[0][-1].shape == (2, 3, 32 if activation == "swiglu" else 48)


@pytest.mark.parametrize("n_vocab", [1, 63, 64, 65])
def test_rows_that_pad_the_vocabulary_give_no_logits_and_get_no_gradient(n_vocab):
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=6, context=4), n_vocab)
    tokens_BT = torch.arange(4)[None] % n_vocab
    logits_BTV = model(tokens_BT)
    assert logits_BTV.shape == (1, 4, n_vocab)
    (logits_BTV.square().sum() + model(tokens_BT, tokens_BT)).backward()
    assert model.embedding.weight.grad is not None
    learns = model.embedding.weight.grad.any(1)
    assert len(learns) == (128 if n_vocab > 64 else 64)
    assert learns[:n_vocab].all()
    assert not learns[n_vocab:].any()


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_bf16_autocast_stays_close_in_loss_and_gradients(activation, options):
    config = ModelConfig(activation=activation, n_layer=2, n_head=2, d_model=48, context=8, **options)
    losses, gradients = [], []
    for bf16 in (False, True):
        model = GPT(config, n_vocab=11)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(model(TOKENS, TOKENS.flip(1)))
        losses[-1].backward()
        assert losses[-1].dtype == torch.float32
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0.01)
    for name, exact in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32
        # A scalar, as an activation's own, may be a small difference of large sums.
        assert (gradients[1][name] - exact).norm() < 0.1 * exact.norm() + 1e-4, name


# --- rotary positions and attention


@pytest.mark.parametrize("K", [2, 6, 8])
def test_rotary_turns_pairs_as_complex_numbers(K):
    x_TK, table_2TK = normal(10_000, K), rotary_table(10_000, K)
    assert table_2TK.dtype == torch.float32
    found_TK = rotate(x_TK[None, None], table_2TK.double())[0, 0]
    np.testing.assert_allclose(found_TK, turned(x_TK.numpy()), atol=1e-6)


def test_rotary_positions_are_no_weights():
    assert all("rotary" not in key for key in loud_model().state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])  # written out, torch's own
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [1, 2, 7, 512, 513])
def test_attention_is_the_formula_in_float64(T, causal, dtype):
    q, k, v = normal(3, 1, 2, T, 8).to(dtype)
    y_BHTK = attend(q, k, v, causal)
    assert y_BHTK.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-12
    for head in range(2):
        q_TK, k_TK, v_TK = (z[0, head].double().numpy() for z in (q, k, v))
        expected_TK = reference_heads(q_TK, k_TK, v_TK, causal)
        np.testing.assert_allclose(y_BHTK[0, head].double(), expected_TK, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # torch's own attention, the one that is written out
def test_mask_lets_a_position_see_itself_and_earlier_ones_only(activation, precision):
    model = loud_model(activation).float()
    x_BTD = model.embedding(TOKENS[:1]).detach().requires_grad_()
    with autocast(precision, x_BTD.device):
        z_TV = model.after_embedding(x_BTD, None)[0]
    for t in range(8):
        (gradient_BTD,) = torch.autograd.grad(z_TV[t] @ torch.arange(11).to(z_TV), x_BTD, retain_graph=True)
        reached = (gradient_BTD[0] != 0).any(1).tolist()
        assert reached == [True] * (t + 1) + [False] * (7 - t)


# --- the cache


@pytest.mark.parametrize("options", [{}, *OPTIONS, {"head": "sigmoid"}], ids=str)
@torch.no_grad()
def test_logits_with_a_cache_are_those_of_one_pass(activation, options):
    model = loud_model(activation, **options)
    expected_BTV, cache = model(TOKENS), Cache(model, 2)
    for start, end in [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]:
        logits_BTV = model(TOKENS[:, start:end], cache=cache)
        torch.testing.assert_close(logits_BTV, expected_BTV[:, start:end], rtol=1e-10, atol=1e-10)
        assert cache.length == end


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_cache_in_bf16_gives_the_logits_of_one_pass(stored):
    model = loud_model().to(stored)
    with torch.autocast("cpu", torch.bfloat16, enabled=stored == torch.float32):
        expected_BTV, cache = model(TOKENS), Cache(model, 2)
        found = [model(part_BT, cache=cache) for part_BT in TOKENS.split([3, 1, 1, 1, 1, 1], 1)]
    assert cache.layers[0].dtype == torch.bfloat16
    assert (torch.cat(found, 1) - expected_BTV).abs().max() < 0.1 * expected_BTV.float().std()


@torch.no_grad()
def test_positions_that_a_cache_cannot_give_are_refused():
    model = loud_model()
    cache = Cache(model, 2)
    model(TOKENS[:, :3], cache=cache)
    with pytest.raises(ValueError, match="2 tokens after 3 in the cache"):
        model(TOKENS[:, 3:5], cache=cache)  # they would see each other wrongly
    cache.length = 8
    with pytest.raises(ValueError, match="9 tokens exceed the context of 8"):
        model(TOKENS[:, :1], cache=cache)
    with pytest.raises(ValueError, match="9 tokens exceed the context of 8"):
        model(torch.zeros(1, 9, dtype=torch.long))


# --- the loss


def large_vocabulary(head: Any) -> tuple[GPT, torch.Tensor, torch.Tensor, list[int]]:
    """A network whose loss takes 512 of 600 tokens at a time, its data, and how many scores the head has read."""
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=6, context=150, head=head), n_vocab=10_007).double()
    with torch.no_grad():
        model.embedding.weight *= 50
    x_BT, y_BT = torch.randint(10_007, (2, 4, 150), generator=torch.Generator().manual_seed(0))
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return model, x_BT, y_BT, seen


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_loss_in_parts_is_the_whole_loss_and_so_are_its_gradients(head, per_token):
    model, x_BT, y_BT, _ = large_vocabulary(head)
    results = []
    for in_parts in (True, False):
        model.loss_in_parts = in_parts
        loss = model(x_BT, y_BT, per_token=per_token)
        assert loss.shape == (x_BT.shape if per_token else ())
        # Unequal factors from above have to reach the gradient of each token.
        (loss * torch.linspace(1, 3, loss.numel()).view_as(loss)).sum().backward()
        results.append({name: p.grad for name, p in model.named_parameters()} | {"loss": loss.detach()})
        model.zero_grad()
    assert "head.bias" in results[0] or head == "softmax"
    for name, part in results[0].items():
        torch.testing.assert_close(part, results[1][name], rtol=1e-9, atol=1e-12)
        assert part is not None
        assert part.any()


def test_scores_of_all_tokens_are_never_there_at_once():
    model, x_BT, y_BT, seen = large_vocabulary("softmax")
    model(x_BT, y_BT).backward()
    # 4 M scores at a time are 419 tokens at this vocabulary. Those of each part are computed anew in the backward pass.
    assert seen == [419, 181, 181, 419]
    seen.clear()
    with torch.no_grad():
        model(x_BT, y_BT, per_token=True)
    assert seen == [419, 181]


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_on_a_gpu_the_loss_of_an_odd_vocabulary_is_that_on_a_cpu(head, precision):
    model, x_BT, y_BT, _ = large_vocabulary(head)
    expected = torch.autograd.grad(model(x_BT, y_BT), model.embedding.weight)[0]
    model = model.float().cuda()
    with autocast(precision, torch.device("cuda")):
        loss = model(x_BT.cuda(), y_BT.cuda())
    found = torch.autograd.grad(loss, model.embedding.weight)[0].cpu().double()
    assert (found - expected).norm() < {"fp32": 1e-4, "bf16": 3e-2}[precision] * expected.norm()
