"""The registry of feed-forward activations: one dict literal, one line each, with its formula and its source.

A name maps to a factory, so that every layer gets a module of its own, which may hold weights. An activation is a
module of one argument, act(up x), or a gated one of two, act(gate x, up x) (Dauphin et al., 2016; Shazeer, 2020).
"""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, unknown
from model.learnable import XIELU, DyT, PolyReLU, PReLU, SigmoidAffine, Snake, SwishBeta

GELU_MEAN = 1 / (2 * math.sqrt(math.pi))  # E GELU(u) for u ~ N(0, 1)


class Pointwise(nn.Module):
    """A weightless activation given by its formula."""

    def __init__(self, formula: Callable[[Tensor], Tensor]):
        super().__init__()
        self.formula = formula

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return self.formula(u)


def pointwise(formula: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Return the factory of a weightless activation, such as `pointwise(lambda u: u * u)`."""
    return partial(Pointwise, formula)


class Gated(nn.Module):
    """A gated activation: act(gate) · up. The FFN then has a third matrix, and 2/3 of the width.

    A subclass may change the formula, but calls `self.act`: the probes measure the gate there.
    """

    def __init__(self, factory: Callable[[], nn.Module]):
        super().__init__()
        self.act = factory()

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return what `down` multiplies; all three have one shape."""
        return self.act(gate) * up


def gated(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return the factory of a gated activation, whose gate is an activation made by `factory`."""
    return partial(Gated, factory)


class SwiGLUClamped(Gated):
    """quick_gelu(min(gate, 7)) · (clamp(up, −7, 7) + 1) (gpt-oss, OpenAI, 2025)."""

    def __init__(self):
        super().__init__(pointwise(lambda gate: _quick_gelu(gate.clamp(max=7))))

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Gated`."""
        return self.act(gate) * (up.clamp(-7, 7) + 1)


def _penalized_tanh(u: Tensor) -> Tensor:
    return F.leaky_relu(torch.tanh(u), 0.25)


def _quick_gelu(u: Tensor) -> Tensor:
    return u * torch.sigmoid(1.702 * u)


def _relu2(u: Tensor) -> Tensor:
    return F.relu(u).square()


def _tanhexp(u: Tensor) -> Tensor:
    # Beyond 4, tanh(eᵘ) is 1, and eᵘ would overflow in the gradient.
    return u * torch.tanh(u.clamp(max=4).exp())


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    # the five that everyone knows come first everywhere
    "sigmoid": nn.Sigmoid,  # σ(u) = 1/(1 + e⁻ᵘ)
    "relu": nn.ReLU,  # max(0, u); Nair & Hinton, 2010
    "gelu": nn.GELU,  # u·Φ(u); Hendrycks & Gimpel, 2016
    "silu": nn.SiLU,  # u·σ(u); Elfwing et al., 2017
    "swiglu": gated(nn.SiLU),  # SiLU gate; Shazeer, 2020
    # fixed
    "identity": nn.Identity,  # u: a linear FFN, the control
    "sigmoid_centered": pointwise(lambda u: torch.tanh(u / 2) / 2),  # σ(u) − ½, with no digits cancelled
    "sigmoid_unit": pointwise(lambda u: 2 * torch.tanh(u / 2)),  # 4(σ(u) − ½): slope 1 at 0
    "sigmoid_steep": pointwise(lambda u: torch.sigmoid(4 * u)),  # σ(4u): slope 1 at 0
    "hard_sigmoid": pointwise(lambda u: (u / 6 + 0.5).clamp(0, 1)),  # Howard et al., 2019
    "tanh": nn.Tanh,  # tanh u
    "lecun_tanh": pointwise(lambda u: 1.7159 * torch.tanh(2 * u / 3)),  # LeCun et al., 1998
    "penalized_tanh": pointwise(_penalized_tanh),  # tanh u, below 0 a quarter of it; Xu et al., 2016
    "hardtanh": nn.Hardtanh,  # min(max(−1, u), 1); Collobert, 2004
    "softsign": nn.Softsign,  # u/(1 + |u|); Glorot & Bengio, 2010
    "relu6": nn.ReLU6,  # min(max(0, u), 6); Krizhevsky, 2010
    "leaky_relu": nn.LeakyReLU,  # max(0.01u, u); Maas et al., 2013
    "elu": nn.ELU,  # u, below 0 eᵘ − 1; Clevert et al., 2015
    "selu": nn.SELU,  # 1.0507·(u, below 0 1.6733(eᵘ − 1)); Klambauer et al., 2017
    "celu": nn.CELU,  # u, below 0 α(e^(u/α) − 1); Barron, 2017; at α = 1, as here, it is ELU
    "softplus": nn.Softplus,  # ln(1 + eᵘ); Dugas et al., 2000
    "gelu_plus": pointwise(lambda u: F.gelu(u) + 1.129),  # σ's share of the mean, GELU's slope
    "gelu_centered": pointwise(lambda u: F.gelu(u) - GELU_MEAN),  # mean 0 at u ~ N(0, 1), GELU's slope
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),  # u/2·(1 + tanh(√(2/π)(u + 0.044715u³))); GPT-2
    "quick_gelu": pointwise(_quick_gelu),  # u·σ(1.702u); CLIP, 2021
    "hard_swish": nn.Hardswish,  # u·min(max(0, u + 3), 6)/6; Howard et al., 2019
    "mish": nn.Mish,  # u·tanh(softplus(u)); Misra, 2019
    "tanhexp": pointwise(_tanhexp),  # u·tanh(eᵘ); Liu & Di, 2020
    "lisht": pointwise(lambda u: u * torch.tanh(u)),  # u·tanh u; Roy et al., 2019
    "relu2": pointwise(_relu2),  # max(0, u)²; Primer, So et al., 2021
    "leaky_relu2": pointwise(lambda u: F.leaky_relu(u, 0.5).square()),  # max(u/2, u)²; openai/parameter-golf, 2026
    "gelu2": pointwise(lambda u: F.gelu(u).square()),  # (u·Φ(u))², a smoother relu2; openai/parameter-golf, 2026
    "silu2": pointwise(lambda u: F.silu(u).square()),  # (u·σ(u))², a smoother relu2; openai/parameter-golf, 2026
    # learned: the formulas are in model/learnable.py
    "prelu": PReLU,  # u, below 0 au with a learned from 0.25; He et al., 2015
    "swish_beta": SwishBeta,  # u·σ(βu); Ramachandran et al., 2017
    "xielu": XIELU,  # αₚu² + βu, below 0 αₙ(eᵘ − 1 − u) + βu; Huang & Schlag, 2024
    "polyrelu": PolyReLU,  # a cubic in max(0, u); Zhuo et al., 2024
    "dyt": DyT,  # γ tanh(αu) + β; Zhu et al., 2025
    "sigmoid_affine": SigmoidAffine,  # a·σ(bu + c) + d
    "snake": Snake,  # u + sin²(αu)/α; Ziyin et al., 2020
    # gated; Shazeer, 2020
    "glu": gated(nn.Sigmoid),  # sigmoid gate; Dauphin et al., 2016
    "bilinear": gated(nn.Identity),  # a product of two linear maps; Mnih & Hinton, 2007
    "reglu": gated(nn.ReLU),  # ReLU gate
    "geglu": gated(nn.GELU),  # GELU gate
    "tanhglu": gated(nn.Tanh),  # tanh gate
    "relu2glu": gated(pointwise(_relu2)),  # max(0, u)² gate
    "swiglu_clamped": SwiGLUClamped,  # g·σ(1.702g)·(v + 1), g and v clamped to 7; gpt-oss, OpenAI, 2025
}


def formulas() -> dict[str, str]:
    """Return the formula and the source of each name, as its line above says them."""
    source = Path(__file__).read_text("utf-8")
    return dict(re.findall(r'^    "(\w+)": .*,  # (.*)$', source, re.MULTILINE))


def check_name(name: str, plugin: str = "") -> None:
    """Raise `UserError` with the nearest name if the registry does not hold `name`.

    `plugin` is the file that a config names for it. It is executed only where --plugin names it too.
    """
    if name not in ACTIVATIONS:
        if plugin:
            raise UserError(f"activation {name!r} comes from a plugin, which runs only if you add --plugin={plugin}")
        several = [part.strip() for part in name.split(",")]
        if len(several) > 1 and all(part in ACTIVATIONS for part in several):
            listed = ", ".join(f'"{part}"' for part in several)
            raise UserError(f"{name!r} is not one activation. To compare several: --model.activation='[{listed}]'.")
        raise UserError(unknown("activation", name, ACTIVATIONS) + " Your own come with --plugin FILE.")


def is_gated(name: str) -> bool:
    """Whether the activation of that name is gated, so that its FFN has a third matrix."""
    return isinstance(ACTIVATIONS[name](), Gated)
