"""Two units whose value and slope belong to different functions.

python train.py configs/claims/ --plugin=configs/claims/repair.py

If vanishing gradients cost the sigmoid its loss, `sigmoid_straight` must end below the sigmoid, and `gelu_vanishing`
above GELU. What a network computes is that of σ and GELU; only the gradient that goes back through the unit differs.

`model.init = "slope"` reads that gradient too: it would start these units with other weights than σ and GELU. The other
initial weights are the same.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.activations import pointwise


class WithSlope(torch.autograd.Function):
    """`value(u)` in the forward pass, and `slope(u)` in place of its derivative in the backward pass."""

    generate_vmap_rule = True  # for stacked runs

    @staticmethod
    def forward(u: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Return value(u), any shape."""
        return value(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep u and the slope for the backward pass."""
        u, _, ctx.slope = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of u; value and slope have none."""
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.slope(u), None, None


def steepest_slope(u: Tensor) -> Tensor:
    """Return σ'(0) = ¼ for every u."""
    return torch.full_like(u, 0.25)


def vanishing_slope(u: Tensor) -> Tensor:
    """Return 2σ'(u): the shape of the sigmoid's slope, with GELU's slope of ½ at 0."""
    return 2 * torch.sigmoid(u) * torch.sigmoid(-u)


ACTIVATIONS = {
    "sigmoid_straight": pointwise(lambda u: WithSlope.apply(u, torch.sigmoid, steepest_slope)),
    "gelu_vanishing": pointwise(lambda u: WithSlope.apply(u, F.gelu, vanishing_slope)),
}
