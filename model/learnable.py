"""Activations that learn. Each layer holds scalars of its own."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _scalar(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


class PReLU(nn.Module):
    """u, below 0 au (He et al., 2015). It starts at a = 0.25, as torch's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.25]))

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return F.prelu(u, self.weight.to(u.dtype))  # autocast would do it, but not under vmap


class SwishBeta(nn.Module):
    """u·σ(βu) (Ramachandran et al., 2017). It starts as SiLU, at β = 1."""

    def __init__(self):
        super().__init__()
        self.beta = _scalar(1.0)

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return u * torch.sigmoid(self.beta * u)


class XIELU(nn.Module):
    """αₚu² + βu, below 0 αₙ(eᵘ − 1 − u) + βu; αₚ > 0, αₙ > β = ½ (Huang & Schlag, 2024). Both α start at 0.8."""

    BETA = 0.5

    def __init__(self):
        super().__init__()
        self.alpha_p = _scalar(math.log(math.expm1(0.8)))  # the inverse of softplus
        self.alpha_n = _scalar(math.log(math.expm1(0.8 - self.BETA)))

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        alpha_p, alpha_n = F.softplus(self.alpha_p), self.BETA + F.softplus(self.alpha_n)
        below = alpha_n * torch.expm1(u.clamp(max=0)) + (self.BETA - alpha_n) * u  # a branch not taken stays finite too
        return torch.where(u > 0, (alpha_p * u + self.BETA) * u, below)


class PolyReLU(nn.Module):
    """a₀ + a₁r + a₂r² + a₃r³ with r = max(0, u) (Zhuo et al., 2024). It starts at a₀ = 0 and ⅓ for the others."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        r, a = F.relu(u), self.a
        return a[0] + r * (a[1] + r * (a[2] + r * a[3]))


class DyT(nn.Module):
    """γ tanh(αu) + β (Zhu et al., 2025). It starts at α = ½, γ = 1, β = 0.

    The paper puts it in place of a norm, with γ and β per channel; here the FFN's matrices scale each channel already.
    """

    def __init__(self):
        super().__init__()
        self.alpha, self.gamma, self.beta = _scalar(0.5), _scalar(1.0), _scalar(0.0)

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return self.gamma * torch.tanh(self.alpha * u) + self.beta


class SigmoidAffine(nn.Module):
    """a·σ(bu + c) + d: what a sigmoid turns into when it is free. It starts as the sigmoid."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = _scalar(1.0), _scalar(1.0), _scalar(0.0), _scalar(0.0)

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return self.a * torch.sigmoid(self.b * u + self.c) + self.d


class Snake(nn.Module):
    """u + sin²(αu)/α (Ziyin et al., 2020). It starts at α = 1."""

    def __init__(self):
        super().__init__()
        self.alpha = _scalar(1.0)

    def forward(self, u: Tensor) -> Tensor:
        """Apply the formula, any shape."""
        return u + torch.sin(self.alpha * u).square() / self.alpha
