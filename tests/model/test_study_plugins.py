"""The plugins beside the studies: the units of the anatomy, and those whose slope belongs to another function."""

import math

import pytest
import torch
from helpers import ROOT, TOKENS, loud_model
from scipy.integrate import quad
from scipy.stats import norm
from torch.func import vmap

from model.activations import ACTIVATIONS
from model.plugin import load_plugin

pytestmark = pytest.mark.usefixtures("registry")

U = torch.linspace(-8, 8, 161, dtype=torch.float64)
SHAPES = ["linear", "linear_even", "saturating", "saturating_even"]


@pytest.fixture
def anatomy(registry):
    load_plugin(ROOT / "configs" / "anatomy.py")


@pytest.fixture
def repair(registry):
    load_plugin(ROOT / "configs" / "claims" / "repair.py")


def call(name, u):
    return ACTIVATIONS[name]()(u)


def slope(name, u):
    u = u.clone().requires_grad_()
    return torch.autograd.grad(call(name, u).sum(), u)[0]


def expectation(name, power=1):
    """E φ(u)^power at u ~ N(0, 1)."""
    return quad(lambda u: call(name, torch.tensor(u, dtype=torch.float64)).item() ** power * norm.pdf(u), -12, 12)[0]


@pytest.mark.usefixtures("anatomy")
def test_two_units_of_the_anatomy_are_known():
    torch.testing.assert_close(call("saturating_mean", U), torch.sigmoid(2 * U), rtol=0, atol=1e-15)
    torch.testing.assert_close(call("linear_even", U), call("gelu_centered", U), rtol=0, atol=1e-15)


@pytest.mark.usefixtures("anatomy")
@pytest.mark.parametrize("name", SHAPES)
def test_a_unit_of_the_anatomy_has_slope_one_half_and_mean_0_or_the_sigmoids_share(name):
    sigmoid_share = 0.5 / math.sqrt(expectation("saturating_mean", 2) - 0.25)
    assert sigmoid_share == pytest.approx(1.59, rel=0.01)
    for one in (name, f"{name}_mean"):
        assert slope(one, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0.5, abs=1e-12)
    assert expectation(name) == pytest.approx(0, abs=1e-9)
    sd = math.sqrt(expectation(name, 2))
    assert expectation(f"{name}_mean") == pytest.approx(sigmoid_share * sd, rel=0.01)
    torch.testing.assert_close(call(f"{name}_mean", U) - call(name, U), torch.full_like(U, expectation(f"{name}_mean")))


@pytest.mark.usefixtures("anatomy")
def test_the_units_of_the_anatomy_share_their_odd_and_their_even_part():
    def odd(name):
        return (call(name, U) - call(name, -U)) / 2

    def even(name):
        return (call(name, U) + call(name, -U)) / 2

    torch.testing.assert_close(odd("linear_even"), U / 2)
    torch.testing.assert_close(odd("saturating_even"), torch.tanh(U) / 2)
    torch.testing.assert_close(even("saturating_even"), even("linear_even"))
    for name in ("linear", "saturating"):
        torch.testing.assert_close(even(name), torch.zeros_like(U))


@pytest.mark.usefixtures("repair")
def test_a_repaired_unit_has_the_value_of_one_function_and_the_slope_of_another():
    assert torch.equal(call("sigmoid_straight", U), torch.sigmoid(U))
    assert torch.equal(slope("sigmoid_straight", U), torch.full_like(U, 0.25))
    assert torch.equal(call("gelu_vanishing", U), torch.nn.functional.gelu(U))
    torch.testing.assert_close(slope("gelu_vanishing", U), 2 * slope("sigmoid", U))
    zero = torch.zeros(1, dtype=torch.float64)
    assert slope("gelu_vanishing", zero) == slope("gelu", zero) == 0.5


@pytest.mark.usefixtures("repair")
@pytest.mark.parametrize(("name", "same"), [("sigmoid_straight", "sigmoid"), ("gelu_vanishing", "gelu")])
def test_networks_of_repaired_units_have_equal_logits_and_other_gradients(name, same):
    one, other = loud_model(name), loud_model(same)
    assert torch.equal(one(TOKENS), other(TOKENS))
    for model in (one, other):
        model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    up = "blocks.0.ffn.up.weight"
    gradients = [model.get_parameter(up).grad for model in (one, other)]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


@pytest.mark.usefixtures("repair")
@pytest.mark.parametrize("name", ["sigmoid_straight", "gelu_vanishing"])
def test_repaired_units_work_in_stacked_runs(name):
    u_RN = torch.stack((U, U / 2)).requires_grad_()
    stacked = vmap(ACTIVATIONS[name]())(u_RN)
    assert torch.equal(stacked, call(name, u_RN))
    assert torch.equal(torch.autograd.grad(stacked.sum(), u_RN)[0], slope(name, u_RN.detach()))
