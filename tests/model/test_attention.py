import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.attention import BLOCK, PLAIN_UP_TO, Attention, attend, rotary_table, rotate
from model.config import ModelConfig

CONFIG = ModelConfig(n_layer=1, n_head=2, d_model=12, context=9)


def reference_attention(x_TD: NDArray, qkv: NDArray, out: NDArray, n_head: int) -> NDArray:
    """Causal attention of one sequence, head by head: the pair (k, k + K/2) is a complex number that turns."""
    T, D = x_TD.shape
    K = D // n_head
    turn_TK = np.exp(1j * np.outer(np.arange(T), 1e4 ** (-2 * np.arange(K // 2) / K)))
    heads = []
    for head in range(n_head):
        q_TK, k_TK, v_TK = (x_TD @ qkv[i * D + head * K : i * D + (head + 1) * K].T for i in range(3))
        q_TK, k_TK = (turn_TK * (z[:, : K // 2] + 1j * z[:, K // 2 :]) for z in (q_TK, k_TK))
        score_TT = (q_TK @ k_TK.conj().T).real / np.sqrt(K)
        score_TT[np.triu_indices(T, 1)] = -np.inf
        weight_TT = np.exp(score_TT - score_TT.max(1, keepdims=True))
        heads.append(weight_TT / weight_TT.sum(1, keepdims=True) @ v_TK)
    return np.concatenate(heads, 1) @ out.T


@pytest.fixture
def attention():
    torch.manual_seed(0)
    attention = Attention(CONFIG).double()
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    return attention


def test_is_the_textbook_formula(attention):
    x_BTD = torch.randn(3, 9, 12, dtype=torch.float64)
    y_BTD = attention(x_BTD, rotary_table(9, 6).double()).detach()
    for x_TD, y_TD in zip(x_BTD.numpy(), y_BTD, strict=True):
        qkv, out = attention.qkv.weight.detach().numpy(), attention.out.weight.detach().numpy()
        np.testing.assert_allclose(y_TD, reference_attention(x_TD, qkv, out, 2), rtol=1e-5, atol=1e-6)


def test_scores_depend_on_the_distance_only():
    q_K, k_K = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q_TK, k_TK = (rotate(z.expand(1, 1, 50, 8), *rotary_table(50, 8))[0, 0] for z in (q_K, k_K))
    score_TT = q_TK @ k_TK.T
    torch.testing.assert_close(score_TT[1:, 1:], score_TT[:-1, :-1], rtol=0, atol=1e-5)
    assert score_TT[0].std() > 0.1


def test_rotary_table_by_hand():
    cos_TK, sin_TK = rotary_table(3, 4)  # angles t and t/100
    assert cos_TK.dtype == torch.float32
    cos = torch.tensor([[1, 1], [0.5403023, 0.9999500], [-0.4161468, 0.9998000]])
    sin = torch.tensor([[0, 0], [0.8414710, 0.0099998], [0.9092974, 0.0199987]])
    torch.testing.assert_close(cos_TK, cos.repeat(1, 2))
    torch.testing.assert_close(sin_TK, torch.cat((-sin, sin), 1))


def test_rotary_table_is_exact_far_out():
    angle_TK = np.outer(np.arange(100_000), [1, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3)])
    table_2TK = rotary_table(100_000, 6)
    np.testing.assert_allclose(table_2TK[..., 3:], np.stack((np.cos(angle_TK), np.sin(angle_TK))), rtol=0, atol=1e-7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [1, 2, 7, PLAIN_UP_TO, PLAIN_UP_TO + 1])
def test_plain_bf16_attention_is_the_fused_one_of_float32(T, causal):
    q, k, v = torch.randn(3, 2, 3, T, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
    torch.testing.assert_close(attend(q, k, v, causal).float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("T", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_bf16_gradients_by_blocks_are_those_of_float32(T):
    qkv = torch.randn(3, 2, 3, T, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    grad = torch.randn(2, 3, T, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    q, k, v = inputs = [z.clone().requires_grad_() for z in qkv]
    wide_q, wide_k, wide_v = wide = [z.float().requires_grad_() for z in qkv]
    y, expected = attend(q, k, v, causal=True), F.scaled_dot_product_attention(wide_q, wide_k, wide_v, is_causal=True)
    (of_view, _), *_ = y.grad_fn.next_functions  # pyright: ignore[reportOptionalMemberAccess]
    assert type(of_view).__name__ == "_CausalBackward"
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    found = torch.autograd.grad(y, inputs, grad)
    for one, other in zip(found, torch.autograd.grad(expected, wide, grad.float()), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.03, atol=0.03)
