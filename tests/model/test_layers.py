"""The formulations for a CPU are torch's own layers, forward, backward and under vmap."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import layers
from model.attention import heads, rotary_table, rotate
from model.config import ModelConfig
from model.gpt import GPT
from model.layers import Linear, RMSNorm, linear


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("mkl_is_fast", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(48, 96), (96, 48)])
@pytest.mark.parametrize("rows", [1, layers.LEAST_ROWS - 1, layers.LEAST_ROWS, 60])
def test_linear_is_the_product_in_double(inner, outer, rows, mkl_is_fast, monkeypatch):
    monkeypatch.setattr(layers, "MKL_IS_FAST", mkl_is_fast)
    x, weight, grad = normal(rows, 2, inner), normal(outer, inner), normal(rows, 2, outer)
    expected = F.linear(x, weight)
    single = [t.detach().float().requires_grad_() for t in (x, weight)]
    y = linear(*single)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    of_x, of_weight = torch.autograd.grad(y, single, grad.float())
    for found, wanted in zip((of_x, of_weight), torch.autograd.grad(expected, (x, weight), grad), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-4)
        assert found.is_contiguous()


@pytest.mark.skipif(layers.ONEDNN is None, reason="this build of torch has no oneDNN")
def test_onednn_is_taken_in_fp32_alone_where_mkl_is_slow(monkeypatch):
    monkeypatch.setattr(layers, "MKL_IS_FAST", False)
    x, weight = normal(32, 8, dtype=torch.float32), normal(4, 8, dtype=torch.float32)
    (of_view, _), *_ = linear(x, weight).grad_fn.next_functions  # pyright: ignore[reportOptionalMemberAccess]
    assert type(of_view).__name__ == "_LinearBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert "_Linear" not in type(linear(x.double(), weight.double()).grad_fn).__name__
    monkeypatch.setattr(layers, "MKL_IS_FAST", True)
    assert "_Linear" not in type(linear(x, weight).grad_fn).__name__


def test_a_frozen_weight_gets_no_gradient():
    layer, x = Linear(8, 4), normal(32, 8, dtype=torch.float32)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(32, 8))
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [32.0] * 4


def test_norm_is_torchs_own_and_its_gradient_is_right():
    norm, reference = RMSNorm(6, eps=1e-6).double(), nn.RMSNorm(6, eps=1e-6).double()
    weight = normal(6)
    norm.weight.data, reference.weight.data = weight.data, weight.data
    x = normal(3, 5, 6)
    torch.testing.assert_close(norm(x), reference(x))
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, weight))
    torch.testing.assert_close(norm(torch.zeros(1, 6).double()), torch.zeros(1, 6).double())


@pytest.mark.parametrize("shape", [(1, 1, 6), (4, 1, 6), (2, 3, 6), (5, 6)])
def test_norm_without_gradients_is_torchs_own(shape):
    norm, reference = RMSNorm(6, eps=1e-2), nn.RMSNorm(6, eps=1e-2)
    norm.weight.data = reference.weight.data = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])
    x = normal(*shape, dtype=torch.float32).detach()
    for scale in (1.0, 0.1, 0.0):
        with torch.inference_mode():
            found = norm(scale * x)
        torch.testing.assert_close(found, reference(scale * x).detach())


def test_heads_are_split_rotated_and_differentiated():
    qkv, table = normal(2, 5, 3, 2, 4), rotary_table(5, 4).double()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    for found, wanted in zip(heads(qkv, table), (rotate(q, *table), rotate(k, *table), v), strict=True):
        torch.testing.assert_close(found, wanted)
        assert found.is_contiguous()
    assert torch.autograd.gradcheck(lambda qkv: heads(qkv, table), (qkv,))


def test_under_vmap_each_network_gives_its_own_loss():
    config = ModelConfig(activation="swiglu", n_layer=2, n_head=2, d_model=16, context=32)
    models = [GPT(config, n_vocab=20, seed=seed) for seed in range(3)]
    stacked, buffers = torch.func.stack_module_state(models)  # pyright: ignore[reportArgumentType]
    tokens_RBT = torch.randint(20, (3, 2, 33), generator=torch.Generator().manual_seed(0))

    def loss(weights, buffers, tokens_BT):
        arguments = (tokens_BT[:, :-1], tokens_BT[:, 1:])
        return torch.func.functional_call(Trained(models[0]), (weights, buffers), arguments)

    names = {f"model.{name}": p for name, p in stacked.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no batching rule on a CPU
        found_R = torch.func.vmap(loss)(names, {f"model.{name}": b for name, b in buffers.items()}, tokens_RBT)
    for model, tokens_BT, found in zip(models, tokens_RBT, found_R, strict=True):
        torch.testing.assert_close(found, model.train_loss(tokens_BT[:, :-1], tokens_BT[:, 1:]), rtol=1e-5, atol=1e-5)


class Trained(nn.Module):
    """Calls `train_loss`, for functional_call, which calls a module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x_BT, y_BT):
        return self.model.train_loss(x_BT, y_BT)
