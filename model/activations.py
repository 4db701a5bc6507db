"""The registry of feed-forward activations: one dict literal, one line each, with its formula and its source.

A name maps to a factory, so that every layer gets a module of its own, which may hold weights. `gated` makes the FFN
compute act(x W_gate) * (x W_up) instead of act(x W_up) (Dauphin et al., 2016; Shazeer, 2020).
"""

import importlib.util
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, unknown
from model.learnable import XIELU, DyT, PolyReLU, PReLU, SigmoidAffine, Snake, SwishBeta


def _unchanged(v: Tensor) -> Tensor:
    return v


@dataclass(frozen=True)
class Activation:
    """What the registry holds: `factory()` makes the module, any shape in and the same shape out.

    `on_up` is what a gated FFN does to its other factor: nothing, as a rule.

    Raises:
        ValueError: `on_up` is given without `gated`, where it would have no use.
    """

    factory: Callable[[], nn.Module]
    gated: bool = False
    on_up: Callable[[Tensor], Tensor] = _unchanged

    def __post_init__(self):
        if self.on_up is not _unchanged and not self.gated:
            raise ValueError("an activation with on_up needs gated=True")


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


# of a plugin's activation, which names folders of runs: beside them a study has its files, tune/ and wandb/
NAME = re.compile(r"(?!(tune|wandb|.*\.(toml|html|csv|png))$)[^.+-].{,199}", re.IGNORECASE)
GELU_MEAN = 1 / (2 * math.sqrt(math.pi))  # E GELU(u) for u ~ N(0, 1)


def _penalized_tanh(u: Tensor) -> Tensor:
    return F.leaky_relu(torch.tanh(u), 0.25)


def _quick_gelu(u: Tensor) -> Tensor:
    return u * torch.sigmoid(1.702 * u)


def _relu2(u: Tensor) -> Tensor:
    return F.relu(u).square()


def _tanhexp(u: Tensor) -> Tensor:
    return u * torch.tanh(u.clamp(max=4).exp())  # beyond, tanh is 1, and eᵘ would overflow in the gradient


ACTIVATIONS: dict[str, Activation] = {
    # the five that everyone knows come first everywhere
    "sigmoid": Activation(nn.Sigmoid),  # σ(u) = 1/(1 + e⁻ᵘ)
    "relu": Activation(nn.ReLU),  # max(0, u); Nair & Hinton, 2010
    "gelu": Activation(nn.GELU),  # u·Φ(u); Hendrycks & Gimpel, 2016
    "silu": Activation(nn.SiLU),  # u·σ(u); Elfwing et al., 2017
    "swiglu": Activation(nn.SiLU, gated=True),  # SiLU gate; Shazeer, 2020
    # fixed
    "identity": Activation(nn.Identity),  # u: a linear FFN, the control
    "sigmoid_centered": Activation(pointwise(lambda u: torch.tanh(u / 2) / 2)),  # σ(u) − ½, with no digits cancelled
    "sigmoid_unit": Activation(pointwise(lambda u: 2 * torch.tanh(u / 2))),  # 4(σ(u) − ½): slope 1 at 0
    "sigmoid_steep": Activation(pointwise(lambda u: torch.sigmoid(4 * u))),  # σ(4u): slope 1 at 0
    "hard_sigmoid": Activation(pointwise(lambda u: (u / 6 + 0.5).clamp(0, 1))),  # Howard et al., 2019
    "tanh": Activation(nn.Tanh),  # tanh u
    "lecun_tanh": Activation(pointwise(lambda u: 1.7159 * torch.tanh(2 * u / 3))),  # LeCun et al., 1998
    "penalized_tanh": Activation(pointwise(_penalized_tanh)),  # tanh u, below 0 a quarter of it; Xu et al., 2016
    "hardtanh": Activation(nn.Hardtanh),  # min(max(−1, u), 1); Collobert, 2004
    "softsign": Activation(nn.Softsign),  # u/(1 + |u|); Glorot & Bengio, 2010
    "relu6": Activation(nn.ReLU6),  # min(max(0, u), 6); Krizhevsky, 2010
    "leaky_relu": Activation(nn.LeakyReLU),  # max(0.01u, u); Maas et al., 2013
    "elu": Activation(nn.ELU),  # u, below 0 eᵘ − 1; Clevert et al., 2015
    "selu": Activation(nn.SELU),  # 1.0507·(u, below 0 1.6733(eᵘ − 1)); Klambauer et al., 2017
    "celu": Activation(partial(nn.CELU, alpha=2.0)),  # u, below 0 2(e^(u/2) − 1); Barron, 2017 (with α = 1 it is ELU)
    "softplus": Activation(nn.Softplus),  # ln(1 + eᵘ); Dugas et al., 2000
    "gelu_plus": Activation(pointwise(lambda u: F.gelu(u) + 1.129)),  # σ's share of the mean, GELU's slope
    "gelu_centered": Activation(pointwise(lambda u: F.gelu(u) - GELU_MEAN)),  # mean 0 at u ~ N(0, 1), GELU's slope
    "gelu_tanh": Activation(partial(nn.GELU, approximate="tanh")),  # u/2·(1 + tanh(√(2/π)(u + 0.044715u³))); GPT-2
    "quick_gelu": Activation(pointwise(_quick_gelu)),  # u·σ(1.702u); CLIP, 2021
    "hard_swish": Activation(nn.Hardswish),  # u·min(max(0, u + 3), 6)/6; Howard et al., 2019
    "mish": Activation(nn.Mish),  # u·tanh(softplus(u)); Misra, 2019
    "tanhexp": Activation(pointwise(_tanhexp)),  # u·tanh(eᵘ); Liu & Di, 2020
    "lisht": Activation(pointwise(lambda u: u * torch.tanh(u))),  # u·tanh u; Roy et al., 2019
    "relu2": Activation(pointwise(_relu2)),  # max(0, u)²; Primer, So et al., 2021
    # learned: the formulas are in model/learnable.py
    "prelu": Activation(PReLU),  # u, below 0 au with a learned from 0.25; He et al., 2015
    "swish_beta": Activation(SwishBeta),  # u·σ(βu); Ramachandran et al., 2017
    "xielu": Activation(XIELU),  # αₚu² + βu, below 0 αₙ(eᵘ − 1 − u) + βu; Huang & Schlag, 2024
    "polyrelu": Activation(PolyReLU),  # a cubic in max(0, u); Zhuo et al., 2024
    "dyt": Activation(DyT),  # γ tanh(αu) + β; Zhu et al., 2025
    "sigmoid_affine": Activation(SigmoidAffine),  # a·σ(bu + c) + d
    "snake": Activation(Snake),  # u + sin²(αu)/α; Ziyin et al., 2020
    # gated; Shazeer, 2020
    "glu": Activation(nn.Sigmoid, gated=True),  # sigmoid gate; Dauphin et al., 2016
    "bilinear": Activation(nn.Identity, gated=True),  # a product of two linear maps; Mnih & Hinton, 2007
    "reglu": Activation(nn.ReLU, gated=True),  # ReLU gate
    "geglu": Activation(nn.GELU, gated=True),  # GELU gate
    "tanhglu": Activation(nn.Tanh, gated=True),  # tanh gate
    "relu2glu": Activation(pointwise(_relu2), gated=True),  # max(0, u)² gate
    # g·σ(1.702g)·(v + 1) with g = min(gate, 7), v = min(max(−7, up), 7); gpt-oss, OpenAI, 2025
    "swiglu_clamped": Activation(
        pointwise(lambda u: _quick_gelu(u.clamp(max=7))), gated=True, on_up=lambda v: v.clamp(-7, 7) + 1
    ),
}


def check_name(name: str) -> None:
    """Raise `UserError` with the nearest name if the registry does not hold `name`."""
    if name not in ACTIVATIONS:
        raise UserError(unknown("activation", name, ACTIVATIONS) + " Your own come with --plugin FILE.")


def load_plugin(path: Path) -> None:
    """Run the Python file at `path` and add the dict `ACTIVATIONS` that it defines to the registry.

    Raises:
        UserError: the file is missing, fails, defines no such dict, redefines a name or has one that no folder of a
            run could have, or a factory makes no module, or the same one twice.
    """
    path = path.expanduser()  # no shell does after a =
    if not path.is_file():
        raise UserError(f"--plugin {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: a Python file (.py) is expected.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks itself up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    added = getattr(module, "ACTIVATIONS", None)
    if not isinstance(added, dict) or added is ACTIVATIONS or not _holds_activations(added):
        raise UserError(
            f"--plugin {path}: it must define ACTIVATIONS, a dict of its own of name -> model.activations.Activation."
        )
    if taken := [name for name in added if name in ACTIVATIONS]:
        raise UserError(f"--plugin {path}: the registry already has {', '.join(taken)}; choose another name.")
    for name, activation in added.items():
        if not NAME.fullmatch(name):
            raise UserError(
                f"--plugin {path}: {name!r}: a name has 1 to 200 characters on one line and begins with none of . + -, "
                "since it names the folders of runs; and it is not tune or wandb and no file's (.toml .html .csv .png)."
            )
        try:
            made, another = activation.factory(), activation.factory()
        except (Exception, SystemExit) as error:
            made = another = f"{type(error).__name__}: {error}"
        if not isinstance(made, nn.Module):
            raise UserError(
                f"--plugin {path}: {name}: factory() must make an nn.Module, such as Activation(nn.ReLU) or "
                f"Activation(pointwise(torch.relu)), but gave {made}."
            )
        if made is another:
            raise UserError(
                f"--plugin {path}: {name}: factory() gave the same object twice: each layer gets a module of its own."
            )
        if wrong := _misbehaves(activation, made):
            raise UserError(f"--plugin {path}: {name}: {wrong}.")
    ACTIVATIONS.update(added)


def _misbehaves(activation: Activation, made: nn.Module) -> str:
    """Return what is wrong with an activation that would otherwise show in the midst of a run, or at its end."""
    try:
        with torch.device("meta"):
            activation.factory()
    except (Exception, SystemExit) as error:
        return f"factory() must not read values of the tensors that it makes ({type(error).__name__}: {error})"
    u_BTF = torch.linspace(-3, 3, 64).view(2, 4, 8)
    given_BTF = u_BTF.clone()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = [made.eval()(u_BTF), activation.on_up(u_BTF)]
            with torch.enable_grad():
                learns = getattr(made(u_BTF.clone().requires_grad_() + 0), "requires_grad", False)
    except (Exception, SystemExit):  # it may be for one width alone
        return ""
    if not all(isinstance(h_BTF, Tensor) and h_BTF.shape == u_BTF.shape for h_BTF in found):
        return "it must return a tensor of the shape that it is given"
    if not u_BTF.equal(given_BTF):
        return "it must leave what it is given as it is: inplace=False"
    return "" if learns else "what it returns must have a gradient by what it is given"


def _holds_activations(added: dict) -> bool:
    return all(isinstance(name, str) and isinstance(entry, Activation) for name, entry in added.items())
