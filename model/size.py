"""What a network costs: parameters and floating-point operations, so that a fair match can be printed and tested."""

from dataclasses import dataclass, replace

import torch

from model.config import ModelConfig
from model.gpt import GPT


@dataclass(frozen=True)
class Size:
    """Parameters (`ffn` and `block` are of all layers together) and training FLOPs per token."""

    total: int
    embedding: int
    block: int
    ffn: int
    flops_per_token: int


def size(config: ModelConfig, n_vocab: int) -> Size:
    """Count a model without memory for its weights, however large it is.

    The rows that pad the vocabulary are left out: no token reads them.

    FLOPs are those of a forward and a backward pass for one token at full context (PaLM, Chowdhery et al., 2022,
    appendix B). Each weight of a matrix product counts 6, and attention counts 12·layers·D·T. The embedding counts
    once, as the output layer. Gains, biases and what an activation holds do not count.
    """
    # All blocks are alike, so one of them is counted: a config with a billion layers is counted at once too.
    with torch.device("meta"):
        model = GPT(replace(config, n_layer=1, context=1), n_vocab)
    counts = {}
    for name, parameter in model.named_parameters():
        counts[name] = parameter.numel() * (config.n_layer if name.startswith("blocks.") else 1)
    counts["embedding.weight"] = n_vocab * config.d_model
    matrices = [name for name, p in model.named_parameters() if p.ndim >= 2 and ".act." not in name]
    products = sum(counts[name] for name in matrices)
    return Size(
        total=sum(counts.values()),
        embedding=counts["embedding.weight"],
        block=sum(n for name, n in counts.items() if name.startswith("blocks.")),
        ffn=sum(n for name, n in counts.items() if ".ffn." in name),
        flops_per_token=6 * products + 12 * config.n_layer * config.d_model * config.context,
    )
