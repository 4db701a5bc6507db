"""Controls: effects that theory knows, measured with what judges a claim. If one fails, the instrument is broken."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from model.activations import ACTIVATIONS
from model.moments import moments
from training.probes.measures import agreement, log_slope, rms, same_sign
from training.probes.probes import watch

WIDTH, DEPTH, ROWS = 512, 16, 256  # of the plain network, and the inputs that it sees
UNITS, TOKENS, OUTPUTS = 512, 512, 16384  # of the gradient whose signs are counted


@dataclass(frozen=True)
class Control:
    """What was measured for each activation, what theory says, and the errors that are allowed."""

    text: str
    measured: dict[str, float]
    expected: dict[str, float]
    allowed: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every figure is as near to theory as is allowed."""
        return all(abs(self.measured[name] - self.expected[name]) <= self.allowed[name] for name in self.expected)


def plain_net() -> Control:
    """Measure how the gradient's norm changes per layer of a plain network: no residual, no norm.

    With weights of variance gain²/fan-in that keep the second moment, gain = 1/√E[φ²], it changes by √(E[φ'²]/E[φ²]).
    """
    names = ("sigmoid", "relu", "gelu")
    theory = {name: moments(ACTIVATIONS[name]) for name in names}
    expected = {name: math.sqrt(theory[name].slope_second / theory[name].second) for name in names}
    return Control(
        f"change of the gradient's norm per layer, {DEPTH} plain layers of width {WIDTH}",
        {name: gradient_ratio(name, 1 / math.sqrt(theory[name].second)) for name in names},
        expected,
        {name: 0.05 * value for name, value in expected.items()},
    )


def gradient_ratio(activation: str, gain: float, seed: int = 0) -> float:
    """Return by what factor the gradient's norm changes per layer on its way back through a plain network, fp32.

    Layers are watched and their gradients measured as the probes do it in a GPT's blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(*(nn.Sequential(ACTIVATIONS[activation](), _linear(gain, generator)) for _ in range(DEPTH)))
    u_ND = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
    with watch(dict(net.named_children())) as seen:
        y_ND = net(u_ND)
    direction_ND = torch.randn(ROWS, WIDTH, generator=generator)
    inputs = [seen[str(layer)][0] for layer in range(DEPTH)]
    gradients = torch.autograd.grad((y_ND * direction_ND).sum(), inputs)
    return math.exp(-log_slope([rms(gradient_ND).item() for gradient_ND in gradients]))


def _linear(gain: float, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator) * (gain / math.sqrt(WIDTH)))
    return linear


def sign_agreement() -> Control:
    """Measure how often two entries of a row of W2's gradient agree in sign, hidden units and deltas being random.

    At mean share ρ = (E h)²/E[h²] theory says ½ + arcsin(ρ)/π.
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
