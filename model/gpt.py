"""A decoder-only Transformer (GPT), to be read from top to bottom.

Pre-norm blocks, rotary positions, no biases, and one matrix for the embedding and the output layer. Two parts are
choices by name: the FFN's activation (model/activations.py) and the head (model/heads.py).

Shape suffixes, everywhere: B batch, T positions, S positions that attention sees, D width of the residual stream,
F width of the FFN, H heads, K width of a head, V vocabulary, N any number of tokens. A digit is a fixed size: 2 for
cosines and sines, or for keys and values; 3 for queries, keys and values.

Scores z are what the head reads; logits are what it returns.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.activations import ACTIVATIONS, Gated
from model.config import ModelConfig
from model.heads import HEADS, cross_entropy
from model.init import init_weights

# Under the root of every norm. torch's own default for RMSNorm depends on the dtype.
EPS = 1e-6

WRITTEN_OUT_UP_TO = 512  # positions, of the one formula that is not torch's (see `attend`)

# A vocabulary is padded to a multiple of this: a GPU's fast matrix products need it.
VOCABULARY_MULTIPLE = 64

# Scores (tokens x vocabulary) that the loss computes at a time, by device. On a CPU, 4 M scores are 16 MiB in fp32. At
# GPT-2's 50,257 tokens, the scores of a whole batch would be most of a step's memory. On a GPU, large products are
# faster and memory is less scarce.
SCORES_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 30, "mps": 1 << 27}
FEWEST_ROWS = 256  # fewer tokens at a time would be slow: each part adds to the gradient of the output layer


def ffn_width(d_model: int, gated: bool) -> int:
    """Return the hidden width F that costs 8·d_model² weights: 2·d·4d ungated, 3·d·(8d/3) gated (Shazeer, 2020)."""
    return 8 * d_model // 3 if gated else 4 * d_model


def rotary_table(context: int, d_head: int) -> Tensor:
    """Return the cosines and the signed sines of the rotary angles, (2, T, K), in float32.

    RoFormer (Su et al., 2021), base 10,000. Dimension k of a head is paired with k + K/2. The sines of the first half
    are negative, so that `rotate` needs no case distinction.
    """
    frequency_K = 10_000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle_TK = torch.outer(torch.arange(context, dtype=torch.float64), frequency_K)
    cos_TK, sin_TK = angle_TK.cos(), angle_TK.sin()
    return torch.stack((torch.cat((cos_TK, cos_TK), -1), torch.cat((-sin_TK, sin_TK), -1))).float()


def rotate(x: Tensor, rotary_2TK: Tensor) -> Tensor:
    """Return x, (…, T, K), with each pair (k, k + K/2) of a head turned by the angle of its position."""
    cos_TK, sin_TK = rotary_2TK.to(x.dtype)
    return x * cos_TK + x.roll(x.shape[-1] // 2, -1) * sin_TK


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, causal: bool) -> Tensor:
    """Return softmax(q kᵀ/√K) v, BHTK. With `causal` (T = S), position t sees positions up to t."""
    B, H, T, K = q_BHTK.shape
    S = k_BHSK.shape[2]
    # The one formula that is written out instead of torch's own. In bf16 on a CPU, up to 512 positions, the fused
    # kernel takes 2.5 to 3.8 times as long (benchmarks/attention.py), and a whole step has 0.7 to 0.9 of its speed.
    # Beyond 512 positions, the scores need too much memory.
    if q_BHTK.device.type != "cpu" or q_BHTK.dtype != torch.bfloat16 or S > WRITTEN_OUT_UP_TO:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=causal)
    # Not q.new_zeros: in a stack of runs (training/stack.py) every run would get a mask of its own.
    mask_TS = torch.full((T, S), -math.inf if causal else 0.0, device=q_BHTK.device, dtype=q_BHTK.dtype).triu_(1)
    scores_NTS = torch.baddbmm(mask_TS, q_BHTK.flatten(0, 1), k_BHSK.flatten(0, 1).mT, alpha=K**-0.5)
    return (scores_NTS.softmax(-1) @ v_BHSK.flatten(0, 1)).view(B, H, T, K)


class Cache:
    """The keys and values of the positions that a model has read, in every layer; `length` counts the positions.

    With a cache, a model reads the first positions together and every further one by itself.
    """

    def __init__(self, model: "GPT", batch: int):
        config, weight = model.config, model.embedding.weight
        # Attention stores what it computes with: bf16 under autocast, else the dtype of the weights.
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        shape = (2, batch, config.n_head, config.context, config.d_model // config.n_head)
        self.layers = [torch.empty(shape, device=weight.device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions; x_BTD -> y_BTD."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        # One product for all three is faster than three.
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, rotary_2TK: Tensor, cache_2BHSK: Tensor | None = None) -> Tensor:
        """Return the update of the residual stream, BTD.

        `cache_2BHSK` holds keys and values of S positions; the last T of them are those of x and are written here.
        """
        B, T, D = x_BTD.shape
        qkv_BT3HK = self.qkv(x_BTD).view(B, T, 3, self.n_head, D // self.n_head)
        qkv_3BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK = rotate(qkv_3BHTK[:2], rotary_2TK)
        v_BHTK = qkv_3BHTK[2]
        if cache_2BHSK is not None:
            cache_2BHSK[0, :, :, -T:] = k_BHTK
            cache_2BHSK[1, :, :, -T:] = v_BHTK
            k_BHTK, v_BHTK = cache_2BHSK
        # A single position sees all that there are, so it needs no mask.
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, causal=T > 1)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


class FFN(nn.Module):
    """down(act(up x)), or down(act(gate x, up x)) where the activation is gated; x_BTD -> y_BTD."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.act = ACTIVATIONS[config.activation]()
        gated = isinstance(self.act, Gated)
        width = ffn_width(config.d_model, gated)
        self.gate = nn.Linear(config.d_model, width, bias=False) if gated else None
        self.up = nn.Linear(config.d_model, width, bias=False)
        self.down = nn.Linear(width, config.d_model, bias=config.ffn_bias != "none")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the update of the residual stream, BTD."""
        u_BTF = self.up(x_BTD)
        h_BTF = self.act(u_BTF) if self.gate is None else self.act(self.gate(x_BTD), u_BTF)
        return self.down(h_BTF)


def make_norm(kind: str, d_model: int) -> nn.Module:
    """Return RMSNorm (Zhang & Sennrich, 2019) for "rms", a module that changes nothing for "none"."""
    return nn.RMSNorm(d_model, EPS) if kind == "rms" else nn.Identity()


class Block(nn.Module):
    """A pre-norm Transformer block; x_BTD -> x_BTD."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm = make_norm(config.norm, config.d_model)
        self.attn = Attention(config)
        self.ffn_norm = make_norm(config.norm, config.d_model)
        self.ffn = FFN(config)
        self.ffn_residual = config.ffn_residual

    def forward(self, x_BTD: Tensor, rotary_2TK: Tensor, cache_2BHSK: Tensor | None = None) -> Tensor:
        """Return the residual stream after this block, BTD."""
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), rotary_2TK, cache_2BHSK)
        if self.ffn_residual:
            return x_BTD + self.ffn(self.ffn_norm(x_BTD))
        # The control without a residual connection. The stream keeps its own dtype, which autocast would change here.
        return self.ffn(self.ffn_norm(x_BTD)).to(x_BTD.dtype)


class GPT(nn.Module):
    """tokens_BT -> logits_BTV. The embedding is also the output layer (Press & Wolf, 2016)."""

    rotary_2TK: Tensor

    def __init__(self, config: ModelConfig, n_vocab: int, seed: int = 0):
        super().__init__()
        self.config = config
        self.n_vocab = n_vocab
        # Stacked runs (training/stack.py) and compiled ones (training/step.py) set this to False: neither goes with
        # checkpoint().
        self.loss_in_parts = True
        padded = math.ceil(n_vocab / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.embedding = nn.Embedding(padded, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # The last norm stays even where the blocks have none: without it the scores would have no scale.
        self.norm = make_norm("rms", config.d_model)
        self.head = HEADS[config.head](n_vocab)
        # Recomputed when a checkpoint is loaded, so that none holds it.
        rotary_2TK = rotary_table(config.context, config.d_model // config.n_head)
        self.register_buffer("rotary_2TK", rotary_2TK, persistent=False)
        init_weights(self, config, seed)

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor | None = None, cache: Cache | None = None, per_token: bool = False
    ) -> Tensor:
        """Return the logits of the next token at every position, BTV; their softmax is the model's distribution.

        With `targets_BT`, return the training loss of the head instead, nats per token, a scalar. With `per_token` too,
        return the cross-entropy of each target, nats, BT: all heads are scored on it.

        Raises:
            ValueError: more positions than `config.context`, or than one where the cache holds some already.
        """
        T, cached = tokens_BT.shape[1], cache.length if cache else 0
        if cached + T > self.config.context:
            raise ValueError(f"{cached + T} tokens exceed the context of {self.config.context}")
        # The causal mask of `attend` is that of T = S: it would let several further positions see the wrong ones.
        if cached and T > 1:
            raise ValueError(f"{T} tokens after {cached} in the cache. Read further tokens one at a time.")
        return self.after_embedding(self.embedding(tokens_BT), targets_BT, cache, per_token)

    def after_embedding(
        self, x_BTD: Tensor, targets_BT: Tensor | None, cache: Cache | None = None, per_token: bool = False
    ) -> Tensor:
        """Return what `forward` does, of embedded tokens: the part that `train.compile` compiles."""
        start = cache.length if cache else 0
        end = start + x_BTD.shape[1]
        rotary_2TK = self.rotary_2TK[:, start:end]
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotary_2TK, cache.layers[layer][:, :, :, :end] if cache else None)
        if cache:
            cache.length = end
        x_BTD = self.norm(x_BTD)
        if targets_BT is None:
            return self.head(self.scores(x_BTD))
        loss = self._cross_entropy if per_token else self.head.loss
        # Tokens in one row, since the loss of a token does not depend on its place.
        losses_BT = self._in_parts(loss, x_BTD.flatten(0, 1), targets_BT.flatten()).view_as(targets_BT)
        return losses_BT if per_token else losses_BT.mean()

    def scores(self, x_BTD: Tensor) -> Tensor:
        """Return what the head reads, z_BTV, of the last norm's output, without the columns that pad the vocabulary."""
        return F.linear(x_BTD, self.embedding.weight)[..., : self.n_vocab]

    def _cross_entropy(self, z_NV: Tensor, targets_N: Tensor) -> Tensor:
        return cross_entropy(self.head(z_NV), targets_N)

    def _in_parts(self, loss: Callable[[Tensor, Tensor], Tensor], x_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return `loss(scores, targets)` of each token, N, some tokens at a time where the scores are many.

        The backward pass computes the scores of each part anew, so that they are never all in memory.
        """
        rows = max(SCORES_AT_A_TIME[x_ND.device.type] // self.n_vocab, FEWEST_ROWS)
        if len(x_ND) <= rows or not self.loss_in_parts:
            return loss(self.scores(x_ND), targets_N)

        def loss_of_part(part_ND: Tensor, part_N: Tensor) -> Tensor:
            return loss(self.scores(part_ND), part_N)

        losses = [
            checkpoint(loss_of_part, part_ND, part_N, use_reentrant=False, preserve_rng_state=False)
            for part_ND, part_N in zip(x_ND.split(rows), targets_N.split(rows), strict=True)
        ]
        return torch.cat(losses)
