"""Muon (Jordan et al., 2024): torch's, with all matrices of a shape orthogonalised in one go.

L matrices of M rows and N columns.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from training.device import bf16_is_fast


class Muon(torch.optim.Muon):
    """torch's Muon, its updates scaled to AdamW's RMS (Liu et al., 2025).

    It also serves processors whose bf16 is slow or missing. torch multiplies in bf16 there too, which on a CPU can take
    a hundred times as long as in float32.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float):
        super().__init__(params, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step."""
        for group in self.param_groups:
            weights, grads, buffers = [], [], []
            self._init_group(group, weights, grads, buffers)
            by_shape = defaultdict(list)
            for w_MN, g_MN, momentum_MN in zip(weights, grads, buffers, strict=True):
                by_shape[w_MN.shape].append((w_MN, g_MN, momentum_MN))
            for matrices in by_shape.values():
                updates = [nesterov(g_MN, momentum_MN, group["momentum"]) for _, g_MN, momentum_MN in matrices]
                near_LMN = orthogonal(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
                for (w_MN, _, _), near_MN in zip(matrices, near_LMN, strict=True):
                    w_MN.mul_(1 - group["lr"] * group["weight_decay"])
                    w_MN.sub_(near_MN, alpha=group["lr"] * rms_scale(w_MN.shape))


def nesterov(g: Tensor, momentum_buffer: Tensor, momentum: float) -> Tensor:
    """Update the momentum buffer with a gradient, and return the Nesterov update, any shape."""
    momentum_buffer.lerp_(g, 1 - momentum)
    return g.lerp(momentum_buffer, momentum)


def rms_scale(shape: torch.Size) -> float:
    """Return what scales an orthogonal matrix to the RMS of AdamW's updates, about 0.2 (Liu et al., 2025)."""
    return 0.2 * math.sqrt(max(shape))


def orthogonal(x_LMN: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Return nearly the closest orthogonal matrix of each of L, by Newton-Schulz in bf16 (Jordan et al., 2024).

    Where bf16 is not the faster one, products are taken in float32 and rounded: equal but for the order of their sums.
    """
    # The Gram matrix of the shorter side is the smaller one.
    if x_LMN.shape[1] > x_LMN.shape[2]:
        return orthogonal(x_LMN.mT, coefficients, steps).mT
    a, b, c = coefficients
    native = bf16_is_fast(x_LMN.device.type)

    def rounded(y: Tensor) -> Tensor:
        return y if native else y.bfloat16().float()

    # The iteration needs singular values of at most 1, which the norm of the matrix bounds. Zeros stay zeros.
    x_LMN = x_LMN.bfloat16()
    x_LMN = rounded(x_LMN / x_LMN.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7))
    for _ in range(steps):
        gram_LMM = rounded(x_LMN @ x_LMN.mT)
        gram_LMM = rounded(torch.baddbmm(gram_LMM, gram_LMM, gram_LMM, beta=b, alpha=c))
        x_LMN = rounded(torch.baddbmm(x_LMN, gram_LMM, x_LMN, beta=a))
    return x_LMN
