import math

import pytest
import torch
from helpers import values
from torch import nn

from model.activations import ACTIVATIONS
from training.probes.measures import (
    agreement,
    calibration,
    cosine,
    hidden_moments,
    log_slope,
    rms,
    same_sign,
    slopes,
    spectrum,
)

GAUSSIAN = {  # E φ, E φ², E φ', E φ'², ρ at u ~ N(0, 1)
    "sigmoid": (0.5000, 0.2934, 0.2066, 0.0448, 0.852),
    "sigmoid_centered": (0, 0.0434, 0.2066, 0.0448, 0),
    "sigmoid_unit": (0, 0.6941, 0.8265, 0.7174, 0),
    "tanh": (0, 0.3943, 0.6057, 0.4644, 0),
    "relu": (0.3989, 0.5000, 0.5000, 0.5000, 0.318),
    "elu": (0.1605, 0.6449, 0.7616, 0.6681, 0.040),
    "selu": (0, 1.000, 0.9852, 1.0716, 0),
    "gelu": (0.2821, 0.4252, 0.5000, 0.4559, 0.187),
    "silu": (0.2066, 0.3558, 0.5000, 0.3795, 0.120),
    "mish": (0.2404, 0.4523, 0.5637, 0.4791, 0.128),
    "softplus": (0.8061, 0.9212, 0.5000, 0.2934, 0.705),
    "softsign": (0, 0.1830, 0.4128, 0.2277, 0),
    "relu2": (0.5000, 1.500, 0.7979, 2.000, 0.167),
    "hard_swish": (0.1662, 0.3316, 0.5000, 0.3585, 0.083),
}
AGREEMENT = {"sigmoid": 0.825, "softplus": 0.749, "relu": 0.603, "gelu": 0.560, "silu": 0.538, "tanh": 0.500}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_normal_pre_activations_give_the_figures_of_the_table(name):
    quantiles = torch.linspace(0, 1, 400_001, dtype=torch.float64)[:-1] + 0.5 / 400_000
    u_NF = (math.sqrt(2) * torch.erfinv(2 * quantiles - 1))[:, None]
    act = ACTIVATIONS[name]()
    h, slope = values(hidden_moments(act(u_NF))), values(slopes(act, u_NF))
    found = (h["mean"], h["mean"] ** 2 + h["sd"] ** 2, slope["slope"], slope["slope_square"], h["mean_share"])
    assert found == pytest.approx(GAUSSIAN[name], abs=5e-4)


@pytest.mark.parametrize("name", AGREEMENT)
def test_random_output_deltas_give_the_sign_agreement_that_the_mean_share_predicts(name):
    h_NF, delta_ND = ACTIVATIONS[name]()(normal(0, 1000, 300)), normal(1, 1000, 8000)
    _, pairs = same_sign(delta_ND.mT @ h_NF)
    assert agreement(GAUSSIAN[name][4]) == pytest.approx(AGREEMENT[name], abs=1e-3)
    assert pairs.item() == pytest.approx(AGREEMENT[name], abs=0.01)


@pytest.mark.parametrize("name", AGREEMENT)
def test_normalised_inputs_leave_the_signs_of_the_first_matrix_at_chance(name):
    x_ND = nn.functional.rms_norm(normal(0, 2000, 96), (96,))
    u_NF = x_ND @ normal(1, 96, 400) / math.sqrt(96)
    u_NF.requires_grad_()
    chance = 0.5 + 0.5 * sum(abs(2 * k - 96) / 96 * math.comb(96, k) for k in range(97)) / 2**96
    (delta_NF,) = torch.autograd.grad(ACTIVATIONS[name]()(u_NF), u_NF, normal(2, 2000, 400))
    for gradient_RD in (x_ND, delta_NF.mT @ x_ND):  # of single tokens, and of all
        share, pairs = same_sign(gradient_RD)
        assert share.item() == pytest.approx(chance, abs=0.01)
        assert pairs.item() == pytest.approx(0.5, abs=0.005)


def test_shares_of_signs_by_hand():
    share, pairs = same_sign(torch.tensor([[1.0, 2, 3, -4], [-1, 1, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]]))
    assert share.item() == pytest.approx((3 / 4 + 1 / 2) / 2)  # rows with fewer than two signs do not count
    assert pairs.item() == pytest.approx((3 / 6 + 0) / 2)  # of six pairs three agree; of one pair none


def test_moments_by_hand():
    found = values(hidden_moments(torch.tensor([[1.0, 2.0, 0.0], [3.0, -2.0, 0.0]])))
    assert found["mean"] == pytest.approx(4 / 6)
    assert found["sd"] == pytest.approx(math.sqrt(18 / 6 - (4 / 6) ** 2))
    assert found["mean_share"] == pytest.approx((4 / 5 + 0) / 2)  # a unit that never fires has no share


def test_saturated_and_dead_by_hand():
    u_NF = torch.zeros(2000, 4)
    u_NF[:, 1] = 9.0  # beyond 4.36, σ' is below a twentieth of a quarter
    u_NF[:, 2], u_NF[0, 2] = -9.0, 0.0  # active on one token of 2,000: dead
    u_NF[:, 3], u_NF[:3, 3] = -9.0, 0.0  # on three: alive
    found = values(slopes(nn.Sigmoid(), u_NF))
    assert found["dead"] == pytest.approx(2 / 4)
    assert found["saturated"] == pytest.approx((2000 + 1999 + 1997) / 8000)
    edge = torch.tensor([[4.35], [4.37]])
    assert values(slopes(nn.Sigmoid(), edge))["saturated"] == 0.5


def test_slopes_where_an_activation_holds_weights_leave_them_without_gradients():
    act = nn.PReLU(3)
    found = values(slopes(act, torch.tensor([[-1.0, -1, 2]])))
    assert found["slope"] == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert act.weight.grad is None


@pytest.mark.parametrize("shape", [(60, 5), (5, 60)])
def test_the_spectrum_is_that_of_the_singular_values(shape):
    h_NF = normal(3, *shape)
    eigenvalues = torch.linalg.svdvals(h_NF).square().tolist()
    share = [value / sum(eigenvalues) for value in eigenvalues]
    found = values(spectrum(h_NF))
    assert found["lambda_ratio"] == pytest.approx(max(eigenvalues) / (sum(eigenvalues) / shape[1]), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-4)


@pytest.mark.parametrize("h", [1e30, math.inf, math.nan])
def test_a_spectrum_that_overflows_is_no_number(h):
    assert all(math.isnan(value) for value in spectrum(torch.full((4, 3), h)).values())


def test_effective_rank_by_hand():
    assert values(spectrum(torch.eye(6))) == pytest.approx({"lambda_ratio": 1, "effective_rank": 6}, rel=1e-5)
    assert values(spectrum(torch.ones(6, 6))) == pytest.approx({"lambda_ratio": 6, "effective_rank": 1}, rel=1e-5)
    assert math.isnan(values(spectrum(torch.full((6, 6), math.nan)))["effective_rank"])


def test_calibration_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.38, 0.62], [0.69, 0.31]])
    found = values(calibration(p.log(), torch.tensor([0, 1, 1, 1])))
    assert found["accuracy"] == 0.5
    # bins of 1/15: .95 and .94 share one (its gaps: 1 − 1.89); .62 is in another (1 − .62) than .69 (0 − .69)
    assert found["ece"] == pytest.approx((0.89 + 0.38 + 0.69) / 4, abs=1e-6)


def test_log_slope_by_hand():
    assert log_slope([1.0, math.e, math.e**2]) == pytest.approx(1)
    assert log_slope([1.0, 1.0, math.e]) == pytest.approx(0.5)
    assert math.isnan(log_slope([1.0]))


def test_cosine_and_rms_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert cosine(a, b).item() == pytest.approx(24 / 25)
    assert rms(a).item() == pytest.approx(math.sqrt(12.5))
