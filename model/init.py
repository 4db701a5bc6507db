"""Initial weights."""

import hashlib
import math

import torch
from torch import nn

from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.moments import moments


def ffn_stds(config: ModelConfig, width: int) -> dict[str, float]:
    """Return the standard deviation of each matrix of an FFN of that width, before branch ends are scaled down.

    With inputs of unit variance, `gate` and `up` give pre-activations ~ N(0, 1). Then `down` keeps the second moment
    (`second_moment`: F·std²·E[h²] = 1; after He et al., 2015), or the norm of the gradient that goes back through the
    FFN (`slope`: F·std²·E‖∂h/∂u‖² = 1).
    """
    if config.init == "gpt2":
        return {"gate": 0.02, "up": 0.02, "down": 0.02}
    act = moments(ACTIVATIONS[config.activation])
    gain = act.second if config.init == "second_moment" else act.slope_second
    std = config.d_model**-0.5
    return {"gate": std, "up": std, "down": (width * gain) ** -0.5}


def init_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw GPT-2's initial weights (Radford et al., 2019): N(0, 0.02²), scaled by 1/√(2·layers) where a branch ends.

    `config.init` sets the FFN's matrices apart (`ffn_stds`). An FFN without a residual is no branch of the residual
    stream. Gains stay 1, and what an activation or a head holds stays as it was made.

    The FFN's output bias is 0, or with `config.ffn_bias = "centering"` −E[h]·W2·1 at pre-activations u ~ N(0, 1): the
    FFN then starts as if its activation were centred.

    Every matrix has a random stream of its own, named by seed and parameter. So models that differ in one part (the
    activation, say) start equal in all others.
    """
    branch_ends = ["attn.out.weight"]
    if config.ffn_residual:
        branch_ends.append("ffn.down.weight")
    stds = ffn_stds(config, model.get_parameter("blocks.0.ffn.down.weight").shape[1])
    for name, parameter in model.named_parameters():
        # On the meta device a network is only counted: it has no memory to write to.
        if parameter.ndim < 2 or ".act." in name or parameter.is_meta:
            continue
        matrix = name.split(".")[-2]  # as `up` in blocks.0.ffn.up.weight
        std = stds[matrix] if ".ffn." in name else 0.02
        if name.endswith(tuple(branch_ends)):
            std /= math.sqrt(2 * config.n_layer)
        # Python's own hash of a text differs from process to process.
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    mean = moments(ACTIVATIONS[config.activation]).mean if config.ffn_bias == "centering" else 0.0
    for name, bias in model.named_parameters():
        if name.endswith("ffn.down.bias") and not bias.is_meta:
            weight = model.get_parameter(name.removesuffix("bias") + "weight")
            with torch.no_grad():
                bias.copy_(-mean * weight.sum(1))
