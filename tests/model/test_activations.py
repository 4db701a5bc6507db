"""Every name of the registry against its closed form in float64, written here a second time with numpy and scipy.

Adding an activation takes one line here too: its formula, or in GATES that of its gate.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import TOKENS, loud_model, without_gradient
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, ndtr
from scipy.stats import norm
from torch.func import functional_call

from errors import UserError
from model.activations import ACTIVATIONS, check_name, formulas, is_gated
from model.moments import moments

Formula = Callable[[NDArray], NDArray]


def softplus(x: NDArray) -> NDArray:
    return np.logaddexp(0, x)


FORMULAS: dict[str, Formula] = {
    "sigmoid": expit,
    "sigmoid_centered": lambda u: expit(u) - 0.5,
    "sigmoid_unit": lambda u: 4 * (expit(u) - 0.5),
    "sigmoid_steep": lambda u: expit(4 * u),
    "hard_sigmoid": lambda u: np.clip(u / 6 + 0.5, 0, 1),
    "relu": lambda u: np.maximum(0, u),
    "gelu": lambda u: u * ndtr(u),
    "silu": lambda u: u * expit(u),
    "identity": lambda u: u,
    "tanh": np.tanh,
    "lecun_tanh": lambda u: 1.7159 * np.tanh(u * (2 / 3)),
    "penalized_tanh": lambda u: np.where(u > 0, np.tanh(u), 0.25 * np.tanh(u)),
    "hardtanh": lambda u: np.clip(u, -1, 1),
    "softsign": lambda u: u / (1 + abs(u)),
    "relu6": lambda u: np.clip(u, 0, 6),
    "leaky_relu": lambda u: np.where(u > 0, u, 0.01 * u),
    "elu": lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))),
    "selu": lambda u: 1.0507009873554805 * np.where(u > 0, u, 1.6732632423543772 * np.expm1(np.minimum(u, 0))),
    "celu": lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))),
    "softplus": lambda u: np.logaddexp(0, u),
    "gelu_plus": lambda u: u * ndtr(u) + 1.129,
    "gelu_centered": lambda u: u * ndtr(u) - 0.28209479177387814,
    "gelu_tanh": lambda u: u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
    "quick_gelu": lambda u: u * expit(1.702 * u),
    "hard_swish": lambda u: u * np.clip(u + 3, 0, 6) / 6,
    "mish": lambda u: u * np.tanh(np.logaddexp(0, u)),
    "tanhexp": lambda u: u * np.tanh(np.exp(u)),
    "lisht": lambda u: u * np.tanh(u),
    "relu2": lambda u: np.maximum(0, u) ** 2,
    "leaky_relu2": lambda u: np.where(u > 0, u**2, u**2 / 4),
    "gelu2": lambda u: (u * ndtr(u)) ** 2,
    "silu2": lambda u: (u * expit(u)) ** 2,
}

# The learned ones, from their weights in the order of the module: where they start, and the formula.
LEARNED: dict[str, tuple[NDArray, Callable[..., NDArray]]] = {
    "prelu": (np.array([0.25]), lambda u, a: np.where(u > 0, u, a * u)),
    "swish_beta": (np.array([1.0]), lambda u, beta: u * expit(beta * u)),
    "xielu": (
        np.log(np.expm1([0.8, 0.3])).astype(np.float32),
        lambda u, p, n: (
            np.where(u > 0, softplus(p) * u**2, (0.5 + softplus(n)) * (np.expm1(np.minimum(u, 0)) - u)) + u / 2
        ),
    ),
    "polyrelu": (
        np.array([0, 1 / 3, 1 / 3, 1 / 3], dtype=np.float32),
        lambda u, a, b, c, d: a + b * np.maximum(0, u) + c * np.maximum(0, u) ** 2 + d * np.maximum(0, u) ** 3,
    ),
    "dyt": (np.array([0.5, 1, 0]), lambda u, alpha, gamma, beta: gamma * np.tanh(alpha * u) + beta),
    "sigmoid_affine": (np.array([1.0, 1, 0, 0]), lambda u, a, b, c, d: a * expit(b * u + c) + d),
    "snake": (np.array([1.0]), lambda u, alpha: u + np.sin(alpha * u) ** 2 / alpha),
}
FORMULAS |= {
    name: lambda u, formula=formula, start=start: formula(u, *start.astype(float))
    for name, (start, formula) in LEARNED.items()
}
GATES: dict[str, Formula] = {
    "swiglu": FORMULAS["silu"],
    "glu": FORMULAS["sigmoid"],
    "bilinear": FORMULAS["identity"],
    "reglu": FORMULAS["relu"],
    "geglu": FORMULAS["gelu"],
    "tanhglu": FORMULAS["tanh"],
    "relu2glu": FORMULAS["relu2"],
    "swiglu_clamped": lambda g: np.minimum(g, 7) * expit(1.702 * np.minimum(g, 7)),
}
START_EQUAL = [("sigmoid", "sigmoid_affine"), ("silu", "swish_beta"), ("elu", "celu")]
GRID = np.arange(-8, 8, 0.05) + 0.01  # no kink of any formula (at whole numbers) is nearer than this offset

every_name = pytest.mark.parametrize("name", ACTIVATIONS)


def other_factor(name: str, v: NDArray) -> NDArray:
    """What multiplies the gate."""
    return np.clip(v, -7, 7) + 1 if name == "swiglu_clamped" else v


def hidden(name: str, *inputs: NDArray) -> NDArray:
    """The hidden units of an FFN of that name, from u or from the gate and u."""
    if name in GATES:
        gate, u = inputs
        return GATES[name](gate) * other_factor(name, u)
    return FORMULAS[name](*inputs)


def inputs_of(name: str, grid: NDArray = GRID) -> list[NDArray]:
    """One input, or two that meet each other's every sign and size."""
    return [grid, np.roll(grid[::-1], len(grid) // 3)] if name in GATES else [grid]


def value_and_slopes(name: str, inputs: list[NDArray], dtype=torch.float64) -> tuple[NDArray, list[NDArray]]:
    act, tensors = ACTIVATIONS[name]().to(dtype), [torch.tensor(u, dtype=dtype, requires_grad=True) for u in inputs]
    h_N = act(*tensors)
    slopes = torch.autograd.grad(h_N.sum(), tensors)
    assert {t.dtype for t in (h_N, *slopes)} == {dtype}
    assert all(torch.equal(t, torch.tensor(u, dtype=dtype)) for t, u in zip(tensors, inputs, strict=True))
    return h_N.detach().double().numpy(), [slope_N.double().numpy() for slope_N in slopes]


@every_name
def test_value_and_derivative_are_the_closed_form(name):
    inputs, d = inputs_of(name), 1e-3
    value, slopes = value_and_slopes(name, inputs)
    np.testing.assert_allclose(value, hidden(name, *inputs), rtol=1e-12, atol=1e-13)

    def at(i: int, offset: float) -> NDArray:
        return hidden(name, *(u + offset if j == i else u for j, u in enumerate(inputs)))

    for i, slope in enumerate(slopes):
        difference = (at(i, -2 * d) - 8 * at(i, -d) + 8 * at(i, d) - at(i, 2 * d)) / (12 * d)  # error O(d⁴)
        np.testing.assert_allclose(slope, difference, rtol=1e-11, atol=1e-10)


@every_name
def test_gradcheck_of_inputs_and_weights(name):
    act = ACTIVATIONS[name]().double()
    weights = {n: p.detach().requires_grad_() for n, p in act.named_parameters()}
    grid = np.array([-6.3, -2.1, -0.4, 0.3, 1.7, 5.2, 7.1])
    inputs = [torch.from_numpy(u.copy()).requires_grad_() for u in inputs_of(name, grid)]

    def call(*values):
        given, own = values[: len(inputs)], values[len(inputs) :]
        return functional_call(act, dict(zip(weights, own, strict=True)), given)

    assert torch.autograd.gradcheck(call, (*inputs, *weights.values()))


@every_name
def test_bf16_keeps_its_type_and_its_two_digits(name):
    inputs = [torch.tensor(u, dtype=torch.bfloat16).double().numpy() for u in inputs_of(name)]
    value, _ = value_and_slopes(name, inputs, torch.bfloat16)
    atol = 8e-3 if name == "xielu" else 2e-3  # below 0 it is a difference of numbers near 1
    np.testing.assert_allclose(value, hidden(name, *inputs), rtol=2**-6, atol=atol)


@every_name
def test_far_out_it_stays_finite(name):
    value, slopes = value_and_slopes(name, inputs_of(name, np.array([-1e4, -100, 100, 1e4])), torch.float32)
    assert np.isfinite([value, *slopes]).all()


@pytest.mark.parametrize("name", LEARNED)
def test_each_layer_learns_weights_of_its_own(name):
    model = loud_model(name, n_layer=3)
    model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert without_gradient(model) == []
    acts = [model.get_submodule(f"blocks.{i}.ffn.act") for i in range(3)]
    for a, b in combinations(acts, 2):
        assert {p.data_ptr() for p in a.parameters()}.isdisjoint(p.data_ptr() for p in b.parameters())


@torch.no_grad()
def test_every_name_gives_other_logits_but_those_that_start_equal():
    logits = {name: loud_model(name)(TOKENS) for name in ACTIVATIONS}  # weights are equal where shapes are
    same = [(a, b) for a, b in combinations(logits, 2) if (logits[a] - logits[b]).abs().max() < 1e-5]
    assert sorted(same) == sorted(START_EQUAL)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_ones_use_what_they_learned(name):
    act, (start, formula) = ACTIVATIONS[name]().double(), LEARNED[name]
    learned = -0.6 + 0.35 * np.arange(len(start))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(learned), act.parameters())
    np.testing.assert_allclose(act(torch.from_numpy(GRID)).detach(), formula(GRID, *learned), rtol=1e-12, atol=1e-13)


def test_which_ones_come_first_which_learn_and_which_gate():
    assert list(ACTIVATIONS)[:5] == ["sigmoid", "relu", "gelu", "silu", "swiglu"]
    assert {name for name, factory in ACTIVATIONS.items() if list(factory().parameters())} == set(LEARNED)
    assert {name for name in ACTIVATIONS if is_gated(name)} == set(GATES)


def test_each_name_has_its_formula_in_words():
    found = formulas()
    assert [*found] == [*ACTIVATIONS]
    assert found["relu2"] == "max(0, u)²; Primer, So et al., 2021"
    assert all(text.strip() for text in found.values())


@pytest.mark.parametrize(("given", "nearest"), [("rellu", "relu"), ("GELU", "gelu"), ("swigu", "swiglu")])
def test_unknown_name_suggests_the_nearest(given, nearest):
    with pytest.raises(UserError, match=rf"unknown activation '{given}'\. Did you mean '{nearest}'\?.*--plugin"):
        check_name(given)


def test_far_off_name_suggests_none_and_lists_all():
    with pytest.raises(UserError) as error:
        check_name("zzzz")
    assert "Did you mean" not in str(error.value)
    assert ", ".join(ACTIVATIONS) in str(error.value)


# --- Gaussian moments


def integral(f) -> float:
    """E f(u), interval by interval: every kink is at a whole number, and a Gaussian holds less than 1e-20 beyond 10."""
    return sum(quad(lambda u: f(u) * norm.pdf(u), a, a + 1, epsabs=1e-12)[0] for a in range(-10, 10))


def moments_of(phi: Formula) -> NDArray:
    d = 1e-4
    mean, second = integral(phi), integral(lambda u: phi(u) ** 2)
    slope_mean = integral(lambda u: u * phi(u))  # Stein's lemma: E φ' = E uφ
    slope_second = integral(lambda u: ((phi(u + d) - phi(u - d)) / (2 * d)) ** 2)  # a kink costs about d
    return np.array([mean, second, slope_mean, slope_second])


@every_name
def test_moments_are_those_of_adaptive_quadrature(name):
    expected = moments_of(GATES.get(name) or FORMULAS[name])
    if name in GATES:  # the two inputs are independent, so that every moment is a sum of products
        other = moments_of(lambda v: other_factor(name, v))
        both = expected[1] * other[3] + expected[3] * other[1]
        expected = np.array([*expected[:3] * [other[0], other[1], other[0]], both])
    found = moments(ACTIVATIONS[name])
    np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=3e-6)
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-3)


def test_moments_are_the_same_inside_other_modes_of_torch():
    expected = moments(torch.nn.PReLU)
    with torch.device("meta"), torch.no_grad():
        assert moments(torch.nn.PReLU) == expected
    with torch.inference_mode():
        assert moments(torch.nn.PReLU) == expected


def test_controls_have_the_moments_that_they_are_made_for():
    sigmoid, gelu, plus, centered = (
        moments(ACTIVATIONS[name]) for name in ("sigmoid", "gelu", "gelu_plus", "gelu_centered")
    )
    assert plus.mean**2 / plus.second == pytest.approx(sigmoid.mean**2 / sigmoid.second, abs=1e-3)
    assert plus[2:] == centered[2:] == gelu[2:]
    assert centered.mean == pytest.approx(0, abs=1e-9)
