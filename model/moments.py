"""What an activation makes of standard normal inputs: the constants of initialisation and of gradient theory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from model.activations import Gated


class Moments(NamedTuple):
    """E h, E h², E ∂h/∂u and E ‖∂h/∂u‖² of h = φ(u) for u ~ N(0, 1); of a gated activation, u has two parts."""

    mean: float
    second: float
    slope_mean: float
    slope_second: float


def moments(factory: Callable[[], nn.Module]) -> Moments:
    """Integrate a fresh module of the factory and its derivative, by the midpoint rule in float64.

    A fine grid rather than the few nodes of Gauss-Hermite, which a kink throws off in the third decimal. A gated
    activation is integrated over the plane of its two inputs; its `slope_mean` is that of the gate.
    """
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        # A network may be made on the meta device or without gradients, where nothing could be integrated.
        act = factory().double()
        spacing, end = (1e-2, 8) if isinstance(act, Gated) else (1e-3, 12)
        u_N = torch.arange(-end, end, spacing, dtype=torch.float64) + spacing / 2
        # The softmax is the normal density, normalised over the grid.
        weight_N = torch.softmax(-u_N.square() / 2, 0)
        if isinstance(act, Gated):
            inputs = [axis.flatten().requires_grad_() for axis in torch.meshgrid(u_N, u_N, indexing="ij")]
            weight_N = torch.outer(weight_N, weight_N).flatten()
        else:
            inputs = [u_N.requires_grad_()]
        value_N = act(*inputs)
        slopes = torch.autograd.grad(value_N.sum(), inputs)
        slope_second_N = sum(slope_N.square() for slope_N in slopes)
        return Moments(*((weight_N @ v_N).item() for v_N in (value_N, value_N**2, slopes[0], slope_second_N)))
