"""Initial weights."""

import hashlib
import math

import torch
from torch import nn


def init_weights(model: nn.Module, seed: int) -> None:
    """Draw GPT-2's initial weights (Radford et al., 2019): N(0, 0.02²), by 1/√(2·layers) less where a branch ends.

    Every matrix has a random stream of its own, named by seed and parameter. So models that differ in one part (the
    activation, say) start equal in all others. Gains stay 1, and what an activation holds stays as its factory made it.
    """
    branch_ends = [n for n, _ in model.named_parameters() if n.endswith(("attn.out.weight", "ffn.down.weight"))]
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or ".act." in name or parameter.is_meta:
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        std = 0.02 / math.sqrt(len(branch_ends)) if name in branch_ends else 0.02
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
