"""The score of a model on a split of the data, all of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from data.batches import eval_windows
from data.dataset import Split
from model.gpt import GPT
from training.contents import SCORES
from training.ddp import ONE_PROCESS, Process
from training.device import autocast, to_device, widest_float


@dataclass(frozen=True)
class Score:
    """Loss in nats per token, its exponential, and bits per byte, which compares across tokenizers.

    `windows` holds the loss of each whole window, in the order of the text: from these comes the noise of evaluation.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    windows: np.ndarray

    def named(self, split: str) -> dict[str, float]:
        """Return the figures under their metric names, such as `val/loss`."""
        return {f"{split}/{name}": getattr(self, name) for name in SCORES}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside, where a stochastic activation, such as torch's RReLU, draws no numbers."""
    # A part may be in eval mode on purpose, and has to be in it afterwards.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: GPT,
    split: Split,
    batch_size: int,
    precision: str = "fp32",
    process: Process = ONE_PROCESS,
    shown: str = "",
) -> Score:
    """Score every token of the split but the first once, in consecutive windows of the model's context.

    Perplexity is the exponential of the mean over the whole split. Document separators count as tokens, and their nats
    count in the bits, but they add no bytes. On a terminal, a bar with the text `shown` is there meanwhile.
    """
    context, device = model.config.context, model.embedding.weight.device
    with evaluating(model), autocast(precision, device):
        windows = window_nats(
            lambda x_BT, y_BT: model(x_BT, y_BT, per_token=True), split, context, batch_size, device, process, shown
        )
    return from_nats(windows, split, context)


@torch.no_grad()
def window_nats(
    losses: Callable[[Tensor, Tensor], Tensor],
    split: Split,
    context: int,
    batch_size: int,
    device: torch.device,
    process: Process = ONE_PROCESS,
    shown: str = "",
) -> np.ndarray:
    """Return the nats of each window, in the order of the text; `losses` returns those of each token, BT.

    Dimensions before these, as of several models, are kept. Under DDP each process scores its rows of each batch.
    `shown` is as in `evaluate`.
    """

    def nats_of(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        return losses(x_BT, y_BT).sum(-1, dtype=widest_float(device))

    nats = []
    total = math.ceil((len(split.tokens_N) - 1) / (context * batch_size))
    batches = eval_windows(split.tokens_N, context, batch_size)
    console = Console(stderr=True)
    hidden = not shown or not console.is_terminal
    # Results stay on the device until the end, since each copy to the CPU would wait for a GPU.
    for x_BT, y_BT in track(batches, shown, total, console=console, transient=True, disable=hidden):
        nats.append(process.by_row(nats_of, to_device(x_BT, device), to_device(y_BT, device)))
    return torch.cat(nats, -1).cpu().double().numpy()


def from_nats(windows: np.ndarray, split: Split, context: int) -> Score:
    """Return the score of a split from the nats of each of its windows."""
    n_targets = len(split.tokens_N) - 1
    loss = windows.sum() / n_targets
    # Just above 709 the exponential is beyond all numbers of float64.
    perplexity = math.inf if loss >= 700 else math.exp(loss)
    bits_per_byte = windows.sum() / math.log(2) / split.n_bytes
    return Score(float(loss), perplexity, float(bits_per_byte), windows[: n_targets // context] / context)
