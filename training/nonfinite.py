"""Where a number that is not finite began, looked for only once a step has gone wrong."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from model.gpt import GPT
from training.device import autocast


@torch.no_grad()
def began(model: GPT, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> str:
    """Return the first module of a forward pass whose output is not finite, else the gradient nearest to the loss.

    `model` holds the gradients of these (x_BT, y_BT), not yet clipped.
    """
    found: list[str] = []

    def look(what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            found.append(what)

    def hook(name: str, _module: object, _inputs: object, output: Tensor) -> None:
        look(f"the output of {name}", output)

    # a part returns before the whole that it belongs to
    handles = [module.register_forward_hook(partial(hook, name)) for name, module in model.named_modules()]
    try:
        for x_BT, y_BT in batches:
            # a compiled loss would be compiled once more, with the hooks
            with autocast(precision, x_BT.device), torch.compiler.set_stance("force_eager"):
                look("the loss", model.train_loss(x_BT, y_BT))
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in reversed([*model.named_parameters()]):  # the backward pass meets the last layer first
        if parameter.grad is not None:
            look(f"the gradient of {name}", parameter.grad.norm())
    return found[0] if found else "the norm over all parameters"
