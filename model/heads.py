"""Heads by name: from the scores of the last layer to probabilities over the vocabulary, and what they are trained on.

Softmax of a head's logits is the head's own distribution, normalised. So all heads are scored and sampled alike.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.layers import formulated


def widen(x: Tensor) -> Tensor:
    """Return x in float32 at least: bf16 would round away what sums over a vocabulary need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _CrossEntropy(torch.autograd.Function):
    """The mean over tokens, whose gradient, softmax − one-hot, is made of the softmax that the loss took."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        p_NV = logits_NV.softmax(-1)
        ctx.save_for_backward(p_NV, targets_N)
        below_N1 = logits_NV.amax(-1, keepdim=True) - logits_NV.gather(1, targets_N[:, None])
        return (below_N1 - p_NV.amax(-1, keepdim=True).log()).mean()  # −ln p, where p itself may round to 0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        p_NV, targets_N = ctx.saved_tensors
        share = grad / len(targets_N)
        return (p_NV * share).scatter_add_(1, targets_N[:, None], -share.expand(len(targets_N), 1)), None


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return −ln softmax(logits) of the targets, in nats: the mean over tokens, or each ("none")."""
    logits_NV = widen(logits_NV)
    if reduction == "mean" and formulated(logits_NV):
        return _CrossEntropy.apply(logits_NV, targets_N)  # pyright: ignore[reportReturnType]
    return F.cross_entropy(logits_NV, targets_N, reduction=reduction)


class Softmax(nn.Module):
    """p = softmax(z). The base of the other heads; scores z in, any shape with V last, logits of that shape out."""

    def __init__(self, n_vocab: int):
        super().__init__()

    def forward(self, z_BTV: Tensor) -> Tensor:
        """Return logits whose softmax is the head's distribution, BTV."""
        return z_BTV

    def loss(self, z_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Return the training objective, nats: the mean over tokens."""
        return cross_entropy(self(z_NV), targets_N)


class Sigmoid(Softmax):
    """V yes-or-no questions, P(v) = σ(z_v + b), with one learned b; p = P/ΣP. Trained by binary cross-entropy.

    b starts at −ln(V − 1), so that ΣP is 1 where z is 0; from b = 0 the loss would start at V·ln 2.
    """

    def __init__(self, n_vocab: int):
        super().__init__(n_vocab)
        self.bias = nn.Parameter(torch.tensor(-math.log(max(n_vocab - 1, 1))))

    def forward(self, z_BTV: Tensor) -> Tensor:
        """Return ln P, BTV."""
        return F.logsigmoid(widen(z_BTV) + self.bias)

    def loss(self, z_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Return the binary cross-entropy, nats: the sum over the vocabulary, the mean over tokens."""
        z_NV = widen(z_NV) + self.bias
        # −ln(1 − P) of every token, but −ln P of the target; softplus(z) − softplus(−z) = z
        return (F.softplus(z_NV).sum(-1) - z_NV.gather(-1, targets_N[:, None]).squeeze(-1)).mean()


class NormalizedSigmoid(Softmax):
    """p = σ(z)/Σσ(z)."""

    def forward(self, z_BTV: Tensor) -> Tensor:
        """Return ln σ(z), BTV."""
        return F.logsigmoid(widen(z_BTV))


class Sigsoftmax(Softmax):
    """p = eᶻσ(z)/Σeᶻσ(z) (Kanai et al., 2018)."""

    def forward(self, z_BTV: Tensor) -> Tensor:
        """Return z + ln σ(z), BTV."""
        z_BTV = widen(z_BTV)
        return z_BTV + F.logsigmoid(z_BTV)


HEADS: dict[str, Callable[[int], Softmax]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "normalized_sigmoid": NormalizedSigmoid,
    "sigsoftmax": Sigsoftmax,
}
