"""The optimisers of a stack: AdamW, SGD and Muon for R runs at once, each with a learning rate of its own.

torch's own take one learning rate a call. Muon's arithmetic is shared with the solo run (training/muon.py).

R runs, N weights of a run, P parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from training.config import TrainConfig
from training.device import widest_float
from training.muon import Muon, nesterov, orthogonal, rms_scale
from training.optim import build_optimizers, slot_names

Slots = dict[str, Tensor]  # what an optimiser remembers, RN; the counts of steps, RP


def adamw(w_RN: Tensor, g_RN: Tensor, slots: Slots, lr_R1: Tensor, options: Mapping[str, Any]) -> None:
    """Take a step of AdamW (Loshchilov & Hutter, 2017)."""
    beta1, beta2 = options["betas"]
    mean_RN, square_RN = slots["exp_avg"], slots["exp_avg_sq"]
    slots["step"] += 1
    step_R1 = slots["step"][:, :1].to(widest_float(w_RN.device))  # 1 − βᵗ cancels digits
    mean_RN.lerp_(g_RN, 1 - beta1)
    square_RN.mul_(beta2).addcmul_(g_RN, g_RN, value=1 - beta2)
    root_RN = square_RN.sqrt().div_((1 - beta2**step_R1).sqrt().float()).add_(options["eps"])
    w_RN.mul_(1 - lr_R1 * options["weight_decay"])
    w_RN.sub_(mean_RN.div(root_RN).mul_(lr_R1 / (1 - beta1**step_R1).float()))


def sgd(w_RN: Tensor, g_RN: Tensor, slots: Slots, lr_R1: Tensor, options: Mapping[str, Any]) -> None:
    """Take a step of SGD, with momentum (Polyak, 1964) where there is any."""
    g_RN = g_RN + options["weight_decay"] * w_RN
    if options["momentum"]:
        # From zeros the first step gives the gradient itself, which torch copies.
        g_RN = slots["momentum_buffer"].mul_(options["momentum"]).add_(g_RN)
    w_RN.sub_(lr_R1 * g_RN)


def muon(w_RN: Tensor, g_RN: Tensor, slots: Slots, lr_R1: Tensor, options: Mapping[str, Any]) -> None:
    """Take a step of Muon (Jordan et al., 2024) for matrices of one shape."""
    rows, columns = options["shape"]
    update_RN = nesterov(g_RN, slots["momentum_buffer"], options["momentum"])
    near_LMN = orthogonal(update_RN.reshape(-1, rows, columns), options["ns_coefficients"], options["ns_steps"])
    w_RN.mul_(1 - lr_R1 * options["weight_decay"])
    w_RN.sub_(near_LMN.reshape(w_RN.shape) * (lr_R1 * rms_scale(options["shape"])))


UPDATES: dict[type[Optimizer], Callable[..., None]] = {AdamW: adamw, SGD: sgd, Muon: muon}


class Segment:
    """Parameters of a run, by name, that one group of one optimiser updates alike: columns of the stack."""

    def __init__(self, optimizer: Optimizer, options: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]):
        self.update_rule = UPDATES[type(optimizer)]
        self.slot_names = slot_names(optimizer)
        self.options = options
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.width = sum(p.numel() for p in parameters.values())
        self.slots: Slots = {}

    def by_parameter(self, rows_RN: Tensor) -> dict[str, Tensor]:
        """Return what belongs to each parameter in the segment's columns, (R, *shape)."""
        parts = rows_RN.split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(1, shape) if shape else part[:, 0] for (name, shape), part in named}

    def stack_state(self, states: Sequence[Mapping[str, dict[str, Any]]], like_RN: Tensor) -> None:
        """Move what the runs' own optimisers remember of each parameter into the stack; they keep views of it."""
        for slot in self.slot_names:
            if slot == "step":  # one number for each parameter
                self.slots[slot] = like_RN.new_zeros(len(states), len(self.shapes))
                parts = dict(zip(self.shapes, self.slots[slot].unbind(1), strict=True))
            else:
                self.slots[slot] = torch.zeros_like(like_RN, memory_format=torch.contiguous_format)
                parts = self.by_parameter(self.slots[slot])
            for name, part in parts.items():
                for state, row in zip(states, part, strict=True):
                    if slot in state[name]:
                        row.copy_(state[name][slot])
                    state[name][slot] = row

    def update(self, w_RN: Tensor, g_RN: Tensor, lr_R1: Tensor) -> None:
        """Take a step."""
        self.update_rule(w_RN, g_RN, self.slots, lr_R1, self.options)


def segments(model: nn.Module, config: TrainConfig) -> list[Segment]:
    """Return the segments of a model's parameters: the groups of its optimisers, and for Muon those of one shape."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            by_shape: dict[torch.Size | None, dict[str, nn.Parameter]] = {}
            for p in group["params"]:
                shape = p.shape if isinstance(optimizer, Muon) else None
                by_shape.setdefault(shape, {})[names[id(p)]] = p
            for shape, parameters in by_shape.items():
                found.append(Segment(optimizer, group | {"shape": shape}, parameters))
    return found
