"""Every name of the registry against its closed form in float64, written here a second time with numpy and scipy.

Adding an activation takes one line here too: its formula, or in GATED that of its gate.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, ndtr
from torch.func import functional_call

from errors import UserError
from model.activations import ACTIVATIONS, Activation, check_name, load_plugin
from model.config import ModelConfig
from model.ffn import FFN
from model.gpt import GPT

Formula = Callable[[NDArray], NDArray]


def softplus(x: NDArray) -> NDArray:
    return np.logaddexp(0, x)


def hidden(name: str, u: NDArray, gate: NDArray | None = None) -> NDArray:
    """The hidden units of an FFN of that name."""
    if gate is None:
        return FORMULAS[name](u)
    return FORMULAS[name](gate) * ON_UP.get(name, lambda v: v)(u)


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
    "celu": lambda u: np.where(u > 0, u, 2 * np.expm1(np.minimum(u, 0) / 2)),
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
}

# the learned ones, from their weights in the order of the module: where they start, and the formula
LEARNED: dict[str, tuple[NDArray, Callable[..., NDArray]]] = {
    "prelu": (np.array([0.25]), lambda u, a: np.where(u > 0, u, a * u)),
    "swish_beta": (np.array([1.25]), lambda u, beta: u * expit(beta * u)),
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
    "sigmoid_affine": (np.array([1, 1.25, 0, 0]), lambda u, a, b, c, d: a * expit(b * u + c) + d),
    "snake": (np.array([1.0]), lambda u, alpha: u + np.sin(alpha * u) ** 2 / alpha),
}
FORMULAS |= {
    name: lambda u, formula=formula, start=start: formula(u, *start.astype(float))
    for name, (start, formula) in LEARNED.items()
}
GATED: dict[str, Formula] = {
    "swiglu": FORMULAS["silu"],
    "glu": FORMULAS["sigmoid"],
    "bilinear": FORMULAS["identity"],
    "reglu": FORMULAS["relu"],
    "geglu": FORMULAS["gelu"],
    "tanhglu": FORMULAS["tanh"],
    "relu2glu": FORMULAS["relu2"],
    "swiglu_clamped": lambda u: np.minimum(u, 7) * expit(1.702 * np.minimum(u, 7)),
}
FORMULAS |= GATED
ON_UP: dict[str, Formula] = {"swiglu_clamped": lambda v: np.clip(v, -7, 7) + 1}  # what is done to the other factor
GRID = np.arange(-8, 8, 0.05) + 0.01  # no kink of any formula (at whole numbers) is nearer than this offset

# u ~ N(0, 1): E φ, E φ², E φ', E φ'²
MOMENTS = {
    "sigmoid": (0.5000, 0.2934, 0.2066, 0.0448),
    "sigmoid_centered": (0, 0.0434, 0.2066, 0.0448),
    "sigmoid_unit": (0, 0.6941, 0.8265, 0.7174),
    "tanh": (0, 0.3943, 0.6057, 0.4644),
    "relu": (0.3989, 0.5000, 0.5000, 0.5000),
    "elu": (0.1605, 0.6449, 0.7616, 0.6681),
    "selu": (0, 1.000, 0.9852, 1.0716),
    "gelu": (0.2821, 0.4252, 0.5000, 0.4559),
    "silu": (0.2066, 0.3558, 0.5000, 0.3795),
    "mish": (0.2404, 0.4523, 0.5637, 0.4791),
    "softplus": (0.8061, 0.9212, 0.5000, 0.2934),
    "softsign": (0, 0.1830, 0.4128, 0.2277),
    "relu2": (0.5000, 1.500, 0.7979, 2.000),
    "hard_swish": (0.1662, 0.3316, 0.5000, 0.3585),
}


every_name = pytest.mark.parametrize("name", ACTIVATIONS)


def value_and_derivative(name: str, u: NDArray, dtype=torch.float64) -> tuple[NDArray, NDArray]:
    act, u_N = ACTIVATIONS[name].factory().to(dtype), torch.tensor(u, dtype=dtype, requires_grad=True)
    h_N = act(u_N)
    (slope_N,) = torch.autograd.grad(h_N.sum(), u_N)
    assert h_N.dtype == slope_N.dtype == dtype
    assert torch.equal(u_N, torch.tensor(u, dtype=dtype)), "changed in place"
    return h_N.detach().double().numpy(), slope_N.double().numpy()


@every_name
def test_value_and_derivative_are_the_closed_form(name):
    f, d = FORMULAS[name], 1e-3
    value, slope = value_and_derivative(name, GRID)
    np.testing.assert_allclose(value, f(GRID), rtol=1e-12, atol=1e-13)
    difference = (f(GRID - 2 * d) - 8 * f(GRID - d) + 8 * f(GRID + d) - f(GRID + 2 * d)) / (12 * d)  # error O(d⁴)
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-10)


@every_name
def test_gradcheck_of_input_and_weights(name):
    act = ACTIVATIONS[name].factory().double()
    weights = {n: p.detach().requires_grad_() for n, p in act.named_parameters()}
    u_N = torch.tensor([-6.3, -2.1, -0.4, 0.3, 1.7, 5.2, 7.1], dtype=torch.float64, requires_grad=True)

    def call(u_N, *values):
        return functional_call(act, dict(zip(weights, values, strict=True)), (u_N,))

    assert torch.autograd.gradcheck(call, (u_N, *weights.values()))


@every_name
def test_is_pointwise_in_any_shape(name):
    act, u_N = ACTIVATIONS[name].factory().double(), torch.from_numpy(GRID)
    h_N = act(u_N)
    assert torch.equal(act(u_N.view(4, 5, -1)), h_N.view(4, 5, -1))
    assert torch.equal(act(u_N.flip(0)), h_N.flip(0))


@every_name
def test_bf16_keeps_its_type_and_its_two_digits(name):
    u = torch.tensor(GRID, dtype=torch.bfloat16).double().numpy()
    value, _ = value_and_derivative(name, u, torch.bfloat16)
    atol = 8e-3 if name == "xielu" else 2e-3  # below 0 it is a difference of numbers near 1
    np.testing.assert_allclose(value, FORMULAS[name](u), rtol=2**-6, atol=atol)


@every_name
def test_far_out_it_stays_finite(name):
    value, slope = value_and_derivative(name, np.array([-1e4, -100, 100, 1e4]), torch.float32)
    assert np.isfinite([value, slope]).all()


@every_name
def test_each_layer_has_a_module_of_its_own(name):
    model = GPT(ModelConfig(activation=name, n_layer=3, n_head=1, d_model=6, context=4), n_vocab=5)
    acts = [module.act for module in model.modules() if isinstance(module, FFN)]
    assert len(acts) == 3
    for a, b in combinations(acts, 2):
        assert a is not b
        assert {p.data_ptr() for p in a.parameters()}.isdisjoint(p.data_ptr() for p in b.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_learned_ones_use_what_they_learned(name):
    act, (start, formula) = ACTIVATIONS[name].factory().double(), LEARNED[name]
    learned = -0.6 + 0.35 * np.arange(len(start))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(learned), act.parameters())
    np.testing.assert_allclose(act(torch.from_numpy(GRID)).detach(), formula(GRID, *learned), rtol=1e-12, atol=1e-13)


def test_the_rest_learns_nothing():
    assert {name for name, activation in ACTIVATIONS.items() if list(activation.factory().parameters())} == set(LEARNED)


def test_other_factor_of_a_gate_is_the_closed_form():
    for name, activation in ACTIVATIONS.items():
        v = activation.on_up(torch.from_numpy(GRID)).numpy()
        np.testing.assert_allclose(v, ON_UP.get(name, lambda v: v)(GRID), rtol=1e-14)


def test_something_done_to_a_factor_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="gated=True"):
        Activation(torch.nn.ReLU, on_up=torch.abs)


def test_which_ones_come_first_and_which_gate():
    assert list(ACTIVATIONS)[:5] == ["sigmoid", "relu", "gelu", "silu", "swiglu"]
    assert {name for name, activation in ACTIVATIONS.items() if activation.gated} == set(GATED)


@pytest.mark.parametrize(("given", "nearest"), [("rellu", "relu"), ("GELU", "gelu"), ("swigu", "swiglu")])
def test_unknown_name_suggests_the_nearest(given, nearest):
    with pytest.raises(UserError, match=rf"unknown activation '{given}'\. Did you mean '{nearest}'\?.*--plugin"):
        check_name(given)


def test_far_off_name_suggests_none_and_lists_all():
    with pytest.raises(UserError) as error:
        check_name("zzzz")
    assert "Did you mean" not in str(error.value)
    assert ", ".join(ACTIVATIONS) in str(error.value)


@pytest.fixture
def registry():
    before = dict(ACTIVATIONS)
    yield ACTIVATIONS
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)


def plugin(folder: Path, text: str) -> Path:
    path = folder / "my_acts.py"
    head = "from functools import partial\nimport torch\nfrom torch import nn\n"
    path.write_text(f"{head}from model.activations import Activation, pointwise\n{text}")
    return path


def test_plugin_adds_names_that_train(registry, tmp_path):
    names = list(registry)
    text = "ACTIVATIONS = {'shrink': Activation(nn.Tanhshrink), 'hardglu': Activation(nn.Hardtanh, gated=True)}"
    load_plugin(plugin(tmp_path, text))
    assert list(registry) == [*names, "shrink", "hardglu"]
    for name, kind in (("shrink", torch.nn.Tanhshrink), ("hardglu", torch.nn.Hardtanh)):
        model = GPT(ModelConfig(activation=name, n_layer=1, n_head=1, d_model=6, context=4), n_vocab=5)
        assert any(isinstance(module, kind) for module in model.modules())
        model.loss(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
        assert all(p.grad is not None for p in model.parameters())


# none could be a run's folder, or what else lies beside those of a study
NO_NAMES = ["", ".", "..", ".hid", "-x", "a\n", "tune", "Wandb", "report.html", "a/b.CSV", "x" * 300]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACTIVATIONS = {'new': Activation(nn.ReLU), 'relu': Activation(nn.ReLU)}", "already has relu;"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_package_anywhere", "ModuleNotFoundError.*no_such_package_anywhere"),
        ("", "must define ACTIVATIONS"),
        ("ACTIVATIONS = [Activation(nn.ReLU)]", "must define ACTIVATIONS"),
        ("ACTIVATIONS = {'new': nn.ReLU}", "must define ACTIVATIONS"),
        ("ACTIVATIONS = {3: Activation(nn.ReLU)}", "must define ACTIVATIONS"),
        ("ACTIVATIONS = {'new': Activation(nn.ReLU())}", r"new: factory\(\) must make an nn\.Module"),
        ("ACTIVATIONS = {'new': Activation(nn.functional.relu)}", r"new: factory\(\) must make an nn\.Module"),
        ("ACTIVATIONS = {'new': Activation(lambda: 3)}", r"must make an nn\.Module.* but gave 3\."),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import sys; ACTIVATIONS = {'new': Activation(sys.exit)}", r"must make an nn\.Module.* but gave SystemExit"),
        ("one = nn.ReLU(); ACTIVATIONS = {'new': Activation(lambda: one)}", "new: .*a module of its own"),
        ("ACTIVATIONS = {'new': Activation(nn.GLU)}", "new: .*of the shape that it is given"),
        ("ACTIVATIONS = {'new': Activation(pointwise(lambda u: 3))}", "new: .*of the shape that it is given"),
        ("ACTIVATIONS = {'new': Activation(nn.SiLU, True, lambda v: v.clamp_(-1, 1))}", "new: .*inplace=False"),
        ("ACTIVATIONS = {'new': Activation(partial(nn.ReLU, inplace=True))}", "new: .*inplace=False"),
        ("ACTIVATIONS = {'new': Activation(lambda: nn.Hardtanh(0, torch.rand(1).item()))}", "new: .*not read values"),
        ("ACTIVATIONS = {'new': Activation(pointwise(lambda u: (u > 0) * 1.0))}", "new: .*must have a gradient"),
        *((f"ACTIVATIONS = {{{name!r}: Activation(nn.ReLU)}}", "a name has") for name in NO_NAMES),
    ],
)
def test_bad_plugin_is_refused_and_adds_nothing(registry, tmp_path, text, message):
    names = list(registry)
    with pytest.raises(UserError, match=rf"(?s)--plugin .*my_acts\.py: .*{message}"):
        load_plugin(plugin(tmp_path, text))
    assert list(registry) == names


def test_plugin_may_name_in_any_language(registry, tmp_path):
    text = "ACTIVATIONS = {name: Activation(nn.ReLU) for name in ('λ-relu_0.5+', 'a/b (c)', 'tuned')}"
    load_plugin(plugin(tmp_path, text))
    assert {"λ-relu_0.5+", "a/b (c)", "tuned"} <= set(registry)


def test_plugin_may_be_any_python(registry, tmp_path):
    path = tmp_path / "typed.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\nfrom model.activations import Activation\n"
        "@dataclass\nclass Slope:\n    value: float = 0.2\n"
        "ACTIVATIONS = {'leaky': Activation(lambda: nn.LeakyReLU(Slope().value))}\n"
    )
    load_plugin(path)
    assert registry["leaky"].factory()(torch.tensor(-1.0)) == pytest.approx(-0.2)


def test_plugin_that_is_no_python_file_is_refused(registry, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.py: there is no such file"):
        load_plugin(tmp_path / "nowhere.py")
    (tmp_path / "acts.txt").write_text("ACTIVATIONS = {}")
    with pytest.raises(UserError, match=r"acts\.txt: a Python file"):
        load_plugin(tmp_path / "acts.txt")
