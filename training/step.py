"""One optimiser step."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from data.batches import train_batch
from model.gpt import GPT
from training.config import RunConfig
from training.device import autocast


def train_step(
    model: GPT,
    optimizers: list[Optimizer],
    tokens_N: np.ndarray,
    config: RunConfig,
    step: int,
    lr: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Take the step of that number (from 0) at a learning rate.

    Returns:
        The training loss of its batch before the update, nats/token, and the norm of the gradient before clipping.
    """
    c, device = config.train, model.embedding.weight.device
    x_BT, y_BT = train_batch(tokens_N, c.seed, step, c.batch_size, config.model.context)
    loss = torch.zeros((), device=device)
    for micro_x_BT, micro_y_BT in zip(x_BT.chunk(c.accumulate), y_BT.chunk(c.accumulate), strict=True):
        with autocast(precision, device):
            micro = model.train_loss(micro_x_BT.to(device), micro_y_BT.to(device)) / c.accumulate
        micro.backward()
        loss += micro.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip or math.inf)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    return loss, norm
