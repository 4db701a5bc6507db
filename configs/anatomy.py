"""The eight units of a factorial: what is missing in the sigmoid?

python train.py configs/anatomy.toml --plugin=configs/anatomy.py

Odd part {u/2, ½ tanh u} × even part {none, GELU's} × mean {0, the sigmoid's}. All have slope ½ at 0. Two are known:
`saturating_mean` is σ(2u), and `linear_even` is GELU, centred.

The sigmoid's mean is 1.59 times its own sd at u ~ N(0, 1). Each `_mean` adds as many times the sd of its own unit.
"""

import math

import torch
from torch import Tensor

from model.activations import GELU_MEAN, pointwise


def linear(u: Tensor) -> Tensor:
    """Return the odd part of GELU, u/2."""
    return u / 2


def saturating(u: Tensor) -> Tensor:
    """Return the odd part of σ(2u), ½ tanh u."""
    return torch.tanh(u) / 2


def even(u: Tensor) -> Tensor:
    """Return the even part of GELU, ½ u·erf(u/√2), less its mean at u ~ N(0, 1)."""
    return u * torch.erf(u / math.sqrt(2)) / 2 - GELU_MEAN


ACTIVATIONS = {
    "linear": pointwise(linear),
    "linear_mean": pointwise(lambda u: linear(u) + 0.796),
    "linear_even": pointwise(lambda u: linear(u) + even(u)),
    "linear_even_mean": pointwise(lambda u: linear(u) + even(u) + 0.936),
    "saturating": pointwise(saturating),
    "saturating_mean": pointwise(lambda u: saturating(u) + 0.5),
    "saturating_even": pointwise(lambda u: saturating(u) + even(u)),
    "saturating_even_mean": pointwise(lambda u: saturating(u) + even(u) + 0.701),
}
