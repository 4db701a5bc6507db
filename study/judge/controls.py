"""Controls: effects known from theory, measured by the code that judges a claim. If one fails, that code is wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from model.activations import ACTIVATIONS
from model.moments import moments
from training.probes.measures import agreement, log_slope, rms, same_sign
from training.probes.probes import watch

WIDTH, DEPTH, ROWS = 512, 16, 256  # of the plain network: units of a layer, layers, inputs
UNITS, TOKENS, OUTPUTS = 512, 512, 16384  # of the gradient whose signs are counted: hidden units, tokens, outputs


@dataclass(frozen=True)
class Control:
    """What was measured for each activation, what theory expects, and the largest error that is allowed."""

    text: str
    measured: dict[str, float]
    expected: dict[str, float]
    allowed: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every figure is near enough to theory."""
        return all(abs(self.measured[name] - self.expected[name]) <= self.allowed[name] for name in self.expected)


def plain_net() -> Control:
    """Measure how the gradient's norm changes per layer of a plain network, which has no residual stream and no norm.

    Weights of variance gain²/fan-in with gain = 1/√E[φ²] keep the second moment. Then the gradient's norm changes by
    √(E[φ'²]/E[φ²]) per layer.
    """
    measured, expected = {}, {}
    for name in ("sigmoid", "relu", "gelu"):
        theory = moments(ACTIVATIONS[name])
        measured[name] = _gradient_ratio(name, 1 / math.sqrt(theory.second))
        expected[name] = math.sqrt(theory.slope_second / theory.second)
    text = f"change of the gradient's norm per layer, {DEPTH} plain layers of width {WIDTH}"
    return Control(text, measured, expected, {name: 0.05 * value for name, value in expected.items()})


def _gradient_ratio(activation: str, gain: float) -> float:
    """Return the factor by which the gradient's norm changes per layer on its way back through a plain network, fp32.

    The layers are watched and measured by the probes' own functions, as in the blocks of a GPT.
    """
    # A generator of its own, so that a control neither depends on other code's random numbers nor changes them.
    generator = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator) * (gain / math.sqrt(WIDTH)))
        layers.append(nn.Sequential(ACTIVATIONS[activation](), linear))
    net = nn.Sequential(*layers)
    u_ND = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
    with watch(dict(net.named_children())) as seen:
        y_ND = net(u_ND)
    # The gradient of a random direction of the output, as no loss favours any.
    direction_ND = torch.randn(ROWS, WIDTH, generator=generator)
    inputs = [seen[str(layer)][0] for layer in range(DEPTH)]
    gradients = torch.autograd.grad((y_ND * direction_ND).sum(), inputs)
    # The slope is fitted from the first layer to the last, and the gradient goes the other way.
    return math.exp(-log_slope([rms(gradient_ND).item() for gradient_ND in gradients]))


def sign_agreement() -> Control:
    """Measure how often two entries of a row of W2's gradient have the same sign, for random hidden units and deltas.

    Theory expects ½ + arcsin(ρ)/π, where ρ = (E h)²/E[h²] is the mean share.
    """
    names = ("sigmoid", "softplus", "relu", "gelu", "silu", "tanh")
    generator = torch.Generator().manual_seed(0)
    u_NF = torch.randn(TOKENS, UNITS, generator=generator)
    delta_ND = torch.randn(TOKENS, OUTPUTS, generator=generator)
    measured, expected = {}, {}
    for name in names:
        h_NF = ACTIVATIONS[name]()(u_NF)
        measured[name] = same_sign(delta_ND.mT @ h_NF)[1].item()
        mean, second, _, _ = moments(ACTIVATIONS[name])
        expected[name] = agreement(mean**2 / second)
    text = "pairwise sign agreement in the rows of W2's gradient, random deltas"
    return Control(text, measured, expected, dict.fromkeys(names, 0.01))


CONTROLS: dict[str, Callable[[], Control]] = {"plain_net": plain_net, "sign_agreement": sign_agreement}
