"""The score of a model on a split of the data, all of it."""

import math
from dataclasses import dataclass

import torch

from data.batches import eval_windows
from data.dataset import Split
from model.gpt import GPT


@dataclass(frozen=True)
class Score:
    """Loss in nats per token, its exponential, and bits per byte, which compares across tokenizers."""

    loss: float
    perplexity: float
    bits_per_byte: float

    def named(self, split: str) -> dict[str, float]:
        """Return the figures under their metric names, such as `val/loss`."""
        return {f"{split}/{name}": value for name, value in vars(self).items()}


@torch.no_grad()
def evaluate(model: GPT, split: Split, batch_size: int) -> Score:
    """Score every token of the split but the first once, in consecutive windows of the model's context.

    Nats are summed over the split first, and exponentiated last. Document separators count as tokens, and what they
    cost counts in the bits, but they add no bytes.
    """
    device = model.embedding.weight.device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    for x_BT, y_BT in eval_windows(split.tokens_N, model.config.context, batch_size):
        nats += model.loss(x_BT.to(device), y_BT.to(device), reduction="sum")
    total = nats.item()
    loss = total / (len(split.tokens_N) - 1)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return Score(loss, perplexity, total / math.log(2) / split.n_bytes)
