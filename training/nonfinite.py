"""Finds the first value that is not finite, once a step has gone wrong."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from model.gpt import GPT
from training.device import autocast


@torch.no_grad()
def first_nonfinite(model: GPT, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> str:
    """Return the first module in a forward pass whose output is not finite, else the gradient nearest to the loss.

    `model` holds the gradients of these micro-batches (x_BT, y_BT), not yet clipped.
    """
    found: list[str] = []

    def look(what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            found.append(what)

    def hook(name: str, _module: object, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):  # a module of a plugin may return something else
            look(f"the output of {name}" if name else "the loss", output)

    # The hook of a part is called before that of the whole module.
    handles = [module.register_forward_hook(partial(hook, name)) for name, module in model.named_modules()]
    try:
        for x_BT, y_BT in batches:
            # Without the stance, a compiled loss would be compiled once more, with the hooks.
            with autocast(precision, x_BT.device), torch.compiler.set_stance("force_eager"):
                model(x_BT, y_BT)
    finally:
        for handle in handles:
            handle.remove()
    # The backward pass starts at the last layer.
    for name, parameter in reversed([*model.named_parameters()]):
        if parameter.grad is not None:
            look(f"the gradient of {name}", parameter.grad.norm())
    return found[0] if found else "the norm over all parameters"
