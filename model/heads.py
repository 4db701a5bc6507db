"""Heads by name: from the scores of the last layer to probabilities over the vocabulary, and what they are trained on.

The softmax of a head's logits is the head's own distribution, normalised. So all heads are scored and sampled alike.

A new head is a subclass of `Softmax`, a line in `HEADS`, its name in `ModelConfig.head`, and its formula in
tests/model/test_heads.py.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def widen(x: Tensor) -> Tensor:
    """Return x in float32 at least: bf16 would round away what sums over a vocabulary need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return −ln softmax(logits) of each target, nats, N."""
    return F.cross_entropy(widen(logits_NV), targets_N, reduction="none")


class Softmax(nn.Module):
    """p = softmax(z). The base of the other heads: scores z_BTV in, logits of the same shape out."""

    def __init__(self, n_vocab: int):
        # Only a head with weights needs the size of the vocabulary, but all of them are made by one call.
        super().__init__()

    def forward(self, z_BTV: Tensor) -> Tensor:
        """Return logits whose softmax is the head's distribution, BTV."""
        return z_BTV

    def loss(self, z_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Return the training objective of each token, nats, N."""
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
        """Return the binary cross-entropy of each token, nats: the sum over the vocabulary, N."""
        z_NV = widen(z_NV) + self.bias
        # The sum takes −ln(1 − P) of every token. The target's own share is −ln P instead, and
        # softplus(z) − softplus(−z) = z.
        return F.softplus(z_NV).sum(-1) - z_NV.gather(-1, targets_N[:, None]).squeeze(-1)


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
