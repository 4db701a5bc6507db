import math
from itertools import combinations
from typing import Any, Literal

import pytest
import torch
from helpers import step
from torch import Tensor, nn

from model.activations import ACTIVATIONS, is_gated
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.optim import build_optimizers


def weights(
    name: str = "gelu", seed: int = 0, n_layer: int = 3, d_model: int = 12, n_vocab: int = 11, **options: Any
) -> dict[str, Tensor]:
    config = ModelConfig(activation=name, n_layer=n_layer, n_head=2, d_model=d_model, context=8, **options)
    return {key: p.detach() for key, p in GPT(config, n_vocab, seed).named_parameters()}


def test_same_seed_same_weights_whatever_was_drawn_before(activation):
    first = weights(activation, seed=5)
    torch.manual_seed(123)
    again, other = weights(activation, seed=5), weights(activation, seed=6)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].ndim == 2)


def test_networks_that_differ_in_the_activation_start_equal_in_all_else():
    references = {gated: weights("swiglu" if gated else "gelu") for gated in (False, True)}
    for name in ACTIVATIONS:
        mine, reference = weights(name), references[is_gated(name)]
        assert {key for key in mine if ".act." not in key} == reference.keys()
        assert all(torch.equal(mine[key], reference[key]) for key in reference)
    outside = [{key for key in reference if ".ffn." not in key} for reference in references.values()]
    assert outside[0] == outside[1]
    assert all(torch.equal(references[False][key], references[True][key]) for key in outside[0])


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
@pytest.mark.parametrize("n_layer", [1, 4])
def test_spread_is_that_of_gpt2(name, n_layer):
    for key, weight in weights(name, n_layer=n_layer, d_model=96, n_vocab=300).items():
        if weight.ndim == 1:
            assert (weight == 1).all(), key
            continue
        branch_end = key.endswith(("attn.out.weight", "ffn.down.weight"))
        sd, n = 0.02 / math.sqrt(2 * n_layer) if branch_end else 0.02, weight.numel()
        assert weight.std().item() == pytest.approx(sd, abs=5 * sd / math.sqrt(2 * n)), key
        assert weight.mean().item() == pytest.approx(0, abs=5 * sd / math.sqrt(n)), key
        assert (weight / sd).pow(4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / n)), key


def test_draws_are_independent_between_names_and_seeds():
    draws = [w.flatten() for s in (0, 1) for w in weights("swiglu", s, d_model=48, n_vocab=128).values() if w.ndim == 2]
    assert len(draws) == 2 * (1 + 3 * 5)
    for a, b in combinations(draws, 2):
        n = min(len(a), len(b))
        assert torch.corrcoef(torch.stack((a[:n], b[:n])))[0, 1].abs() < 5 / math.sqrt(n)


def test_a_matrix_that_an_activation_holds_stays_as_it_was_made(monkeypatch):
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.full((2, 2), 0.7))

    monkeypatch.setitem(ACTIVATIONS, "mix", Mix)
    mine, reference = weights("mix"), weights("gelu")
    assert all((weight == 0.7).all() for key, weight in mine.items() if ".act." in key)
    assert all(torch.equal(mine[key], reference[key]) for key in reference)


def test_an_ffn_without_a_residual_is_no_branch_end():
    mine, reference = weights(ffn_residual=False), weights()
    for key, weight in mine.items():
        torch.testing.assert_close(weight, reference[key] * (math.sqrt(6) if key.endswith("down.weight") else 1))


def test_options_start_equal_in_all_else_and_biases_at_zero():
    reference = weights()
    for mine in (weights(norm="none"), weights(ffn_bias="zero"), weights(head="sigmoid")):
        assert all(torch.equal(mine[key], reference[key]) for key in mine if key in reference)
    biases = [weight for key, weight in weights(ffn_bias="zero").items() if key.endswith("down.bias")]
    assert len(biases) == 3
    assert not torch.cat(biases).any()


@pytest.mark.parametrize("init", ["gpt2", "slope"])
def test_a_sigmoid_with_a_centering_bias_starts_as_a_centred_sigmoid_and_trains_another_way(init):
    logits = []
    pairs: list[tuple[str, Any]] = [("sigmoid", "centering"), ("sigmoid_centered", "zero")]
    for name, ffn_bias in pairs:
        config = ModelConfig(activation=name, ffn_bias=ffn_bias, init=init, n_layer=3, n_head=2, d_model=12, context=8)
        model = GPT(config, n_vocab=11, seed=1)
        optimizers = build_optimizers(model, TrainConfig())
        tokens_BT = torch.arange(16).view(2, 8) % 11
        logits.append([model(tokens_BT).detach()])
        step(model, optimizers, seed=0)
        logits[-1].append(model(tokens_BT).detach())
    torch.testing.assert_close(logits[0][0], logits[1][0], rtol=0, atol=1e-6)
    assert (logits[0][1] - logits[1][1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["gelu", "softplus", "polyrelu"])
def test_a_centering_bias_takes_the_mean_of_gaussian_inputs_out_of_the_ffn(name):
    config = ModelConfig(activation=name, ffn_bias="centering", init="slope", d_model=384, n_head=2, n_layer=1)
    ffn = GPT(config, n_vocab=5).get_submodule("blocks.0.ffn")
    x_ND = torch.randn(20_000, 384, generator=torch.Generator().manual_seed(0))
    mean_D = ffn(x_ND).detach().mean(0)
    without_D = mean_D - ffn.get_parameter("down.bias").detach()
    assert mean_D.norm() < 0.2 * without_D.norm()


# --- the schemes that keep a second moment or a gradient's norm


@pytest.mark.parametrize("init", ["second_moment", "slope"])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_other_schemes_change_the_scale_of_the_ffn_alone(name, init):
    mine, reference = weights(name, init=init), weights(name)
    for key, weight in mine.items():
        ratio = weight / reference[key]
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
        assert (ratio.flatten()[0] != 1) == (".ffn." in key), key


def scaled_ffn(name: str, init: Literal["second_moment", "slope"]) -> nn.Module:
    """The first FFN of a network in that scheme, with its place at a branch end undone."""
    model = GPT(ModelConfig(activation=name, n_layer=2, n_head=1, d_model=384, context=8, init=init), n_vocab=5)
    with torch.no_grad():
        model.get_parameter("blocks.0.ffn.down.weight").mul_(math.sqrt(2 * 2))
    return model.get_submodule("blocks.0.ffn")


NAMES = ["sigmoid", "relu", "gelu", "polyrelu", "swiglu", "swiglu_clamped"]


@pytest.mark.parametrize("name", NAMES)
def test_second_moment_goes_through_unchanged(name):
    x_ND = torch.randn(2000, 384, generator=torch.Generator().manual_seed(0))
    ffn = scaled_ffn(name, "second_moment")
    assert ffn.get_submodule("up")(x_ND).std().item() == pytest.approx(1, rel=0.02)
    assert ffn(x_ND).square().mean().item() == pytest.approx(1, rel=0.08)


@pytest.mark.parametrize("name", NAMES)
def test_norm_of_the_gradient_goes_through_unchanged(name):
    x_ND, y_ND = torch.randn(2, 2000, 384, generator=torch.Generator().manual_seed(0))
    x_ND.requires_grad_()
    (gradient_ND,) = torch.autograd.grad(scaled_ffn(name, "slope")(x_ND), x_ND, y_ND)
    assert gradient_ND.square().mean().item() == pytest.approx(1, rel=0.08)
