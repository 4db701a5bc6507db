"""One optimiser step."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from data.batches import train_batch
from model.gpt import GPT
from training.config import RunConfig
from training.device import autocast, moved
from training.nonfinite import began
from training.parallel import ALONE, Alone


def train_step(
    model: GPT,
    optimizers: list[Optimizer],
    tokens_N: np.ndarray,
    config: RunConfig,
    step: int,
    lr: float,
    precision: str,
    ranks: Alone = ALONE,
) -> tuple[float, float]:
    """Take the step of that number (from 0) at a learning rate, unless its loss or gradient is not finite.

    Each of the `ranks` takes its rows of the batch.

    Returns:
        The training loss of its batch before the update, nats/token, and the norm of the gradient before clipping.

    Raises:
        FloatingPointError: one of them is not finite, and `train.nonfinite` is "stop"; the weights are as before.
    """
    c, device = config.train, model.embedding.weight.device
    batches = micro_batches(tokens_N, config, step, device)
    total = torch.zeros((), device=device)
    for micro_x_BT, micro_y_BT in ranks.rows(batches):
        with autocast(precision, device):
            micro = ranks.train_loss(model, micro_x_BT, micro_y_BT) / c.accumulate
        micro.backward()
        total += micro.detach()
    parameters = list(model.parameters())  # once: modules take long to name theirs
    total_norm = ranks.norm(parameters)
    loss, norm = ranks.mean(torch.stack([total, total_norm])).tolist()  # the one wait for a GPU
    if math.isfinite(loss + norm):
        if 0 < c.clip < norm:
            clip_grads_with_norm_(parameters, c.clip, total_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    elif c.nonfinite == "stop":
        raise not_finite(step, loss, norm, began(model, batches, precision))
    for parameter in parameters:
        parameter.grad = None
    return loss, norm


def compile_loss(model: GPT) -> None:
    """Let training steps run the training loss compiled, as one graph of all that follows the embedding.

    The gradient of a compiled embedding is summed in no fixed order, and no run would be equal to its repetition.
    """
    model.embedded_loss = torch.compile(model.embedded_loss)


def micro_batches(
    tokens_N: np.ndarray, config: RunConfig, step: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Return the (x_BT, y_BT) of that step on a device, one for each micro-batch."""
    c = config.train
    batch = train_batch(tokens_N, c.seed, step, c.batch_size, config.model.context)
    x_BT, y_BT = (moved(side, device) for side in batch)
    return list(zip(x_BT.chunk(c.accumulate), y_BT.chunk(c.accumulate), strict=True))


def not_finite(step: int, loss: float, norm: float, where: str) -> FloatingPointError:
    """Return the error that ends a run at a step; `where` is what `began` found."""
    return FloatingPointError(
        f"the loss is {loss} and the norm of the gradient {norm} at step {step + 1}; the first that is not finite "
        f"is {where}. The weights and the last checkpoint are from before that step. "
        "Lower train.lr, or let a new run leave such steps out: --train.nonfinite=skip."
    )
