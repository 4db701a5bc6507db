"""Learning rates, and the optimisers of single runs and of stacks, against torch's own."""

import math

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.gpt import GPT
from training import muon
from training.config import TrainConfig
from training.optim import build_optimizers, lr_factor
from training.stack_optim import segments


def test_warm_up_and_decay_worked_by_hand():
    config = TrainConfig(warmup=0.2, decay=0.5, schedule="linear", final_lr=0.0)
    # 10 steps: two rise (1/3, 2/3), three stay, five fall from 1 by fifths
    expected = [1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [lr_factor(step, 10, config) for step in range(10)] == pytest.approx(expected)


def nanogpt_lr(step, warmup, total, peak, low):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return low + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) * (peak - low)


def test_warm_up_and_cosine_are_nanogpts():
    config = TrainConfig(lr=1e-3, warmup=0.05, decay=0.95, final_lr=0.1)
    ours = [config.lr * lr_factor(step, 2000, config) for step in range(2000)]
    assert ours == pytest.approx([nanogpt_lr(step, 100, 2000, 1e-3, 1e-4) for step in range(2000)])


@pytest.mark.parametrize("activation", ["swiglu", "polyrelu"])
@pytest.mark.parametrize("options", [{}, {"ffn_bias": "zero", "head": "sigmoid"}], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_every_weight_is_optimised_once_and_only_matrices_decay(optimizer, options, activation):
    model = GPT(ModelConfig(activation=activation, n_layer=2, n_head=2, d_model=8, context=4, **options), 11)
    config = TrainConfig(optimizer=optimizer)
    groups = [g for o in build_optimizers(model, config) for g in o.param_groups]
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())
    assert all((group["weight_decay"] > 0) == (p.ndim >= 2) for group in groups for p in group["params"])
    stacked = [name for segment in segments(model, config) for name in segment.shapes]
    assert sorted(stacked) == sorted(name for name, _ in model.named_parameters())


def test_a_frozen_weight_is_not_optimised():
    model = GPT(ModelConfig(activation="prelu", n_layer=1, n_head=2, d_model=8, context=4), 11)
    frozen = model.get_parameter("blocks.0.ffn.act.weight").requires_grad_(False)
    (optimizer,) = build_optimizers(model, TrainConfig())
    assert all(p is not frozen for group in optimizer.param_groups for p in group["params"])


def test_muon_takes_the_matrices_of_the_blocks_alone():
    model = GPT(ModelConfig(activation="swiglu", n_layer=2, n_head=2, d_model=8, context=4, ffn_bias="zero"), 11)
    of_matrices, _ = build_optimizers(model, TrainConfig(optimizer="muon"))
    assert isinstance(of_matrices, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)].split(".", 2)[2] for group in of_matrices.param_groups for p in group["params"]}
    assert taken == {"attn.qkv.weight", "attn.out.weight", "ffn.gate.weight", "ffn.up.weight", "ffn.down.weight"}


@pytest.mark.parametrize(("bf16", "share"), [("products", 0.01), ("rounding", 0.01), ("none", 1e-4)])
def test_muon_moves_matrices_as_torch_s(bf16, share, monkeypatch):
    if bf16 == "none":  # torch's and ours alike
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    monkeypatch.setattr(muon, "bf16_is_fast", lambda _: bf16 == "products")
    generator = torch.Generator().manual_seed(0)
    shapes, lr, decay, momentum = [(16, 16), (24, 8), (16, 16), (8, 24)], 0.1, 0.5, 0.9
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    mine = muon.Muon(ours, lr, decay, momentum)
    peer = torch.optim.Muon(theirs, lr, decay, momentum, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for w, v in zip(ours, theirs, strict=True):
            w.grad = v.grad = torch.randn(w.shape, generator=generator)
        mine.step()
        peer.step()
    for w, v in zip(ours, theirs, strict=True):
        assert (w - v).square().mean().sqrt() < share * lr * 0.2  # of an update's RMS
    assert mine.param_groups[0].keys() == peer.param_groups[0].keys()
    assert [*mine.state_dict()["state"][0]] == [*peer.state_dict()["state"][0]]
