"""The optimisers of a run, and the learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from training.config import TrainConfig
from training.muon import Muon


def lr_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step (counted from 0) as a share of the peak: rise, plateau, fall."""
    warmup = round(config.warmup * steps)
    decay = min(round(config.decay * steps), steps - warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < steps - decay:
        return 1.0
    progress = (step - (steps - decay)) / max(decay, 1)
    fall = progress if config.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - config.final_lr) * fall


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return the optimisers, which share one learning rate.

    Matrices decay, gains and scalars do not. `muon` (Jordan et al., 2024) takes the matrices of the blocks, its updates
    scaled to AdamW's RMS (Liu et al., 2025), and leaves the embedding and the rest to AdamW.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if p.ndim == 2 and "blocks." in name and ".act." not in name]
    matrices = [p for _, p in named if p.ndim >= 2]
    others = [p for _, p in named if p.ndim < 2]
    if config.optimizer == "muon":
        in_muon = {id(p) for p in hidden}
        matrices = [p for p in matrices if id(p) not in in_muon]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
    if config.optimizer == "adamw":
        return [adamw]
    return [Muon(hidden, config.lr, config.weight_decay, config.momentum), adamw]
