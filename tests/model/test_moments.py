import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from test_activations import FORMULAS, MOMENTS

from model.activations import ACTIVATIONS
from model.moments import moments

REACH = 10  # a Gaussian holds less than 1e-20 beyond
KINKS = range(-REACH, REACH + 1)  # every kink is at a whole number


def integral(f) -> float:
    return sum(quad(lambda u: f(u) * norm.pdf(u), a, a + 1, epsabs=1e-12)[0] for a in KINKS[:-1])


@pytest.mark.parametrize("name", MOMENTS)
def test_published_table(name):
    np.testing.assert_allclose(moments(ACTIVATIONS[name].factory), MOMENTS[name], rtol=0, atol=6e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_name_by_adaptive_quadrature_of_its_closed_form(name):
    phi, d = FORMULAS[name], 1e-4
    found = moments(ACTIVATIONS[name].factory)
    assert found.mean == pytest.approx(integral(phi), abs=1e-6)
    assert found.second == pytest.approx(integral(lambda u: phi(u) ** 2), abs=1e-6)
    # E φ' = E uφ (Stein's lemma)
    assert found.slope_mean == pytest.approx(integral(lambda u: u * phi(u)), abs=1e-6)
    difference = integral(lambda u: ((phi(u + d) - phi(u - d)) / (2 * d)) ** 2)  # a kink costs about d
    assert found.slope_second == pytest.approx(difference, abs=1e-3)


def test_nothing_around_it_matters():
    expected = moments(torch.nn.PReLU)
    with torch.device("meta"), torch.no_grad():
        assert moments(torch.nn.PReLU) == expected
    with torch.inference_mode():
        assert moments(torch.nn.PReLU) == expected


def test_control_has_the_share_of_the_mean_that_sigmoid_has_and_the_slope_of_gelu():
    sigmoid, gelu, plus, centered = (
        moments(ACTIVATIONS[name].factory) for name in ("sigmoid", "gelu", "gelu_plus", "gelu_centered")
    )
    assert plus.mean**2 / plus.second == pytest.approx(sigmoid.mean**2 / sigmoid.second, abs=1e-3)
    assert plus[2:] == centered[2:] == gelu[2:]
    assert centered.mean == pytest.approx(0, abs=1e-9)
