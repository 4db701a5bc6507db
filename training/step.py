"""One optimiser step."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from data.batches import train_batch
from model.gpt import GPT, Cache
from training.config import RunConfig
from training.ddp import ONE_PROCESS, Process
from training.device import autocast, make_scaler, to_device
from training.nonfinite import first_nonfinite


def train_step(
    model: GPT,
    optimizers: list[Optimizer],
    tokens_N: np.ndarray,
    config: RunConfig,
    step: int,
    lr: float,
    precision: str,
    process: Process = ONE_PROCESS,
    ddp_model: nn.Module | None = None,
    scaler: GradScaler | None = None,
) -> tuple[float, float]:
    """Take the step of that number (from 0) at a learning rate, unless its loss or gradient is not finite.

    Under DDP, `process` takes its rows of the batch, and `ddp_model` is the model as DDP wraps it. In fp16, a gradient
    that the scale of the loss has made infinite is no fault: the step is left out, and the next scale is half as large.

    Returns:
        The training loss of its batch before the update, nats/token, and the norm of the gradient before clipping.

    Raises:
        FloatingPointError: one of them is not finite, and `train.nonfinite` is "stop"; the weights are as before.
    """
    c, device = config.train, model.embedding.weight.device
    ddp_model = ddp_model or model
    scaler = scaler or make_scaler(precision, device)
    micro_batches = split_batch(tokens_N, config, step, device)
    # The loss stays on the device: to read it for each micro-batch would wait for a GPU each time.
    total = torch.zeros((), device=device)
    for i, (micro_x_BT, micro_y_BT) in enumerate(micro_batches, 1):
        # Under DDP, gradients are exchanged in the backward pass of the last micro-batch alone.
        with nullcontext() if i == c.accumulate else process.without_exchange(ddp_model):
            with autocast(precision, device):
                loss = ddp_model(process.rows(micro_x_BT), process.rows(micro_y_BT)) / c.accumulate
            scaler.scale(loss).backward()
        total += loss.detach()

    for optimizer in optimizers:
        scaler.unscale_(optimizer)  # the norm and the clipping below are those of the gradient itself
    parameters = list(model.parameters())
    # A frozen parameter, as a plugin may hold, has no gradient.
    total_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    # All processes of a run have the same gradient, but each has the loss of its own rows.
    loss, norm = process.mean(torch.stack([total, total_norm])).tolist()  # the one wait for a GPU
    # Tested before the update: after it, every weight could be NaN.
    if math.isfinite(loss + norm):
        if 0 < c.clip < norm:
            clip_grads_with_norm_(parameters, c.clip, total_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    elif scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() > 1:
        # The scale was too large. Where the loss is not finite, or the scale is 1 already, the run itself has failed.
        pass
    elif c.nonfinite == "stop":
        raise nonfinite_error(step, loss, norm, first_nonfinite(model, micro_batches, precision))
    scaler.update()
    # Without a gradient the next backward pass writes a new one, and need not add to zeros.
    for parameter in parameters:
        parameter.grad = None
    return loss, norm


def compile_loss(model: GPT) -> None:
    """Let training steps run the training loss compiled, as one graph of all that follows the embedding.

    The gradient of a compiled embedding is summed in no fixed order: no run would be equal to its repetition. Scores
    and samples stay as written, since each of their shapes would be compiled by itself.
    """
    # `forward`, with its checks and the embedding, stays as it is.
    as_written, compiled = model.after_embedding, torch.compile(model.after_embedding)

    def after_embedding(
        x_BTD: Tensor, targets_BT: Tensor | None, cache: Cache | None = None, per_token: bool = False
    ) -> Tensor:
        chosen = as_written if targets_BT is None or per_token else compiled
        return chosen(x_BTD, targets_BT, cache, per_token)

    model.after_embedding = after_embedding
    model.loss_in_parts = False


def split_batch(
    tokens_N: np.ndarray, config: RunConfig, step: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Return the batch of that step on a device, as one (x_BT, y_BT) for each micro-batch."""
    c = config.train
    x_BT, y_BT = train_batch(tokens_N, c.seed, step, c.batch_size, config.model.context)
    parts = zip(to_device(x_BT, device).chunk(c.accumulate), to_device(y_BT, device).chunk(c.accumulate), strict=True)
    return list(parts)


def nonfinite_error(step: int, loss: float, norm: float, where: str) -> FloatingPointError:
    """Return the error that ends a run at a step (from 0); `where` is what `first_nonfinite` found."""
    return FloatingPointError(
        f"step {step + 1}: the loss is {loss} and the norm of the gradient {norm}. The first value that is not finite "
        f"is {where}. The weights and the last checkpoint are from before that step. Lower train.lr, or start a new "
        "run that skips such steps: --train.nonfinite=skip."
    )
