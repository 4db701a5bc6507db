"""The score of a model on a split of the data, all of it."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from data.batches import eval_windows
from data.dataset import Split
from model.gpt import GPT


@dataclass(frozen=True)
class Score:
    """Loss in nats per token, its exponential, and bits per byte, which compares across tokenizers.

    `windows` holds the loss of each whole window in the order of the text, for the noise of the evaluation.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    windows: np.ndarray

    def named(self, split: str) -> dict[str, float]:
        """Return the figures under their metric names, such as `val/loss`."""
        return {f"{split}/{name}": getattr(self, name) for name in ("loss", "perplexity", "bits_per_byte")}


@torch.no_grad()
def evaluate(model: GPT, split: Split, batch_size: int) -> Score:
    """Score every token of the split but the first once, in consecutive windows of the model's context.

    Nats are summed over the split first, and exponentiated last. Document separators count as tokens, and what they
    cost counts in the bits, but they add no bytes.
    """
    device, context = model.embedding.weight.device, model.config.context
    nats = []
    for x_BT, y_BT in eval_windows(split.tokens_N, context, batch_size):
        nats_BT = model.token_losses(x_BT.to(device), y_BT.to(device))
        nats.append(nats_BT.sum(-1, dtype=torch.float64))
    windows = torch.cat(nats).cpu().numpy()
    n_targets = len(split.tokens_N) - 1
    loss = windows.sum() / n_targets
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits_per_byte = windows.sum() / math.log(2) / split.n_bytes
    return Score(float(loss), perplexity, float(bits_per_byte), windows[: n_targets // context] / context)
