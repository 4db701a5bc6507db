"""A decoder-only Transformer (GPT) with a softmax over the vocabulary.

Shape suffixes, everywhere: B batch, T time (positions), D width of the residual stream, F width of the FFN, H heads,
K width of a head, V vocabulary, N any number of tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import KVCache, rotary_table
from model.block import EPS, Block
from model.config import ModelConfig
from model.init import init_weights


class GPT(nn.Module):
    """tokens_BT -> logits_BTV. The embedding is also the output layer (tied; Press & Wolf, 2016)."""

    rotary_2TK: Tensor

    def __init__(self, config: ModelConfig, n_vocab: int, seed: int = 0):
        super().__init__()
        self.config, self.n_vocab = config, n_vocab
        self.embedding = nn.Embedding(n_vocab, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, EPS)
        rotary_2TK = rotary_table(config.context, config.d_model // config.n_head)
        self.register_buffer("rotary_2TK", rotary_2TK, persistent=False)
        init_weights(self, seed)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the logits of the next token at every position, BTV; with a cache, T positions after those it holds.

        Raises:
            ValueError: more positions than `config.context`, the cache included.
        """
        start = cache.length if cache else 0
        end = start + tokens_BT.shape[1]
        if end > self.config.context:
            raise ValueError(f"{end} tokens exceed the context of {self.config.context}")
        rotary_2TK = self.rotary_2TK[:, start:end]
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary_2TK, cache)
        if cache is not None:
            cache.length = end
        return F.linear(self.norm(x_BTD), self.embedding.weight)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of the targets, in nats: the mean over tokens, their sum, or each ("none", N)."""
        logits_BTV = self(tokens_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction=reduction)
