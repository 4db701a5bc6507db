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
    # The first step has a rate above 0 already, or it would be lost.
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < steps - decay:
        return 1.0
    progress = (step - (steps - decay)) / max(decay, 1)
    fall = progress if config.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - config.final_lr) * fall


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return the optimisers, which share one learning rate. A frozen parameter, as a plugin may hold, is in none.

    Matrices decay; gains and scalars do not. `muon` (Jordan et al., 2024) takes the matrices of the blocks. Its updates
    are scaled to AdamW's RMS (Liu et al., 2025). AdamW takes the embedding and the rest.
    """
    for_muon, matrices, others = [], [], []
    for name, parameter in model.named_parameters():
        # A matrix that an activation holds is no map between two layers, and Muon is for these.
        hidden = parameter.ndim == 2 and "blocks." in name and ".act." not in name
        if not parameter.requires_grad:
            continue
        if config.optimizer == "muon" and hidden:
            for_muon.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    # Decay pulls towards 0, which is no place for a gain that starts at 1.
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
    if config.optimizer == "adamw":
        return [adamw]
    return [Muon(for_muon, config.lr, config.weight_decay, config.momentum), adamw]


def parameters_of(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimiser updates, by their names in the model."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


def slot_names(optimizer: Optimizer) -> list[str]:
    """Return the names of the tensors that an optimiser keeps for each parameter, once it has taken a step."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ["step", "exp_avg", "exp_avg_sq"]
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.defaults["momentum"]:
        return []
    return ["momentum_buffer"]
