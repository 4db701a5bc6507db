"""The registry of feed-forward activations: one dict literal, one line each, with its formula and its source.

A name maps to a factory, so that every layer gets a module of its own, which may hold weights. `gated` makes the FFN
compute act(x W_gate) * (x W_up) instead of act(x W_up) (Dauphin et al., 2016; Shazeer, 2020).
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError, unknown


@dataclass(frozen=True)
class Activation:
    """What the registry holds: `factory()` makes the module, any shape in and the same shape out."""

    factory: Callable[[], nn.Module]
    gated: bool = False


class Pointwise(nn.Module):
    """A weightless activation given by its formula."""

    def __init__(self, formula: Callable[[Tensor], Tensor]):
        super().__init__()
        self.formula = formula

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return self.formula(u)


class SwishBeta(nn.Module):
    """u·σ(βu) with β learned (Ramachandran et al., 2017). It starts between SiLU (1) and quick GELU (1.702)."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.25))

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return u * torch.sigmoid(self.beta.to(u.dtype) * u)


def pointwise(formula: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Return the factory of a weightless activation, such as `pointwise(lambda u: u * u)`."""
    return partial(Pointwise, formula)


ACTIVATIONS: dict[str, Activation] = {
    # the five that everyone knows come first everywhere
    "sigmoid": Activation(nn.Sigmoid),  # σ(u) = 1/(1 + e⁻ᵘ)
    "relu": Activation(nn.ReLU),  # max(0, u); Nair & Hinton, 2010
    "gelu": Activation(nn.GELU),  # u·Φ(u); Hendrycks & Gimpel, 2016
    "silu": Activation(nn.SiLU),  # u·σ(u); Elfwing et al., 2017
    "swiglu": Activation(nn.SiLU, gated=True),  # SiLU gate; Shazeer, 2020
    # fixed
    "identity": Activation(nn.Identity),  # u: a linear FFN, the control
    "tanh": Activation(nn.Tanh),  # tanh u
    "softsign": Activation(nn.Softsign),  # u/(1 + |u|); Glorot & Bengio, 2010
    "relu6": Activation(nn.ReLU6),  # min(max(0, u), 6); Krizhevsky, 2010
    "leaky_relu": Activation(nn.LeakyReLU),  # max(0.01u, u); Maas et al., 2013
    "elu": Activation(nn.ELU),  # u, below 0 eᵘ − 1; Clevert et al., 2015
    "selu": Activation(nn.SELU),  # 1.0507·(u, below 0 1.6733(eᵘ − 1)); Klambauer et al., 2017
    "celu": Activation(partial(nn.CELU, alpha=2.0)),  # u, below 0 2(e^(u/2) − 1); Barron, 2017 (with α = 1 it is ELU)
    "softplus": Activation(nn.Softplus),  # ln(1 + eᵘ); Dugas et al., 2000
    "gelu_tanh": Activation(partial(nn.GELU, approximate="tanh")),  # u/2·(1 + tanh(√(2/π)(u + 0.044715u³))); GPT-2
    "quick_gelu": Activation(pointwise(lambda u: u * torch.sigmoid(1.702 * u))),  # u·σ(1.702u); CLIP, 2021
    "hard_swish": Activation(nn.Hardswish),  # u·min(max(0, u + 3), 6)/6; Howard et al., 2019
    "mish": Activation(nn.Mish),  # u·tanh(softplus(u)); Misra, 2019
    "relu2": Activation(pointwise(lambda u: F.relu(u).square())),  # max(0, u)²; Primer, So et al., 2021
    # learned
    "prelu": Activation(nn.PReLU),  # u, below 0 au with a learned from 0.25; He et al., 2015
    "swish_beta": Activation(SwishBeta),  # u·σ(βu), β learned; Ramachandran et al., 2017
    # gated; Shazeer, 2020
    "glu": Activation(nn.Sigmoid, gated=True),  # sigmoid gate; Dauphin et al., 2016
    "bilinear": Activation(nn.Identity, gated=True),  # a product of two linear maps; Mnih & Hinton, 2007
    "reglu": Activation(nn.ReLU, gated=True),  # ReLU gate
    "geglu": Activation(nn.GELU, gated=True),  # GELU gate
}


def check_name(name: str) -> None:
    """Raise `UserError` with the nearest name if the registry does not hold `name`."""
    if name not in ACTIVATIONS:
        raise UserError(unknown("activation", name, ACTIVATIONS) + " Your own come with --plugin FILE.")


def load_plugin(path: Path) -> None:
    """Run the Python file at `path` and add the dict `ACTIVATIONS` that it defines to the registry.

    Raises:
        UserError: the file is missing, fails, defines no such dict, redefines a name, or a factory makes no module.
    """
    if not path.is_file():
        raise UserError(f"--plugin {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: a Python file (.py) is expected.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks itself up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    added = getattr(module, "ACTIVATIONS", None)
    if not isinstance(added, dict) or added is ACTIVATIONS or not _holds_activations(added):
        raise UserError(
            f"--plugin {path}: it must define ACTIVATIONS, a dict of its own of name -> model.activations.Activation."
        )
    if taken := [name for name in added if name in ACTIVATIONS]:
        raise UserError(f"--plugin {path}: the registry already has {', '.join(taken)}; choose another name.")
    for name, activation in added.items():
        try:
            made = activation.factory()
        except Exception as error:
            made = f"{type(error).__name__}: {error}"
        if not isinstance(made, nn.Module):
            raise UserError(
                f"--plugin {path}: {name}: factory() must make an nn.Module, such as Activation(nn.ReLU) or "
                f"Activation(pointwise(torch.relu)), but gave {made}."
            )
    ACTIVATIONS.update(added)


def _holds_activations(added: dict) -> bool:
    return all(isinstance(name, str) and isinstance(entry, Activation) for name, entry in added.items())
