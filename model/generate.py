"""Text generation with a key-value cache."""

import torch
from torch import Tensor

from model.attention import KVCache
from model.gpt import GPT


def next_token(
    logits_BV: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw one token a row, B. A temperature of (nearly) 0 takes the likeliest.

    `top_k` > 0 keeps the k likeliest tokens (Fan et al., 2018); `top_p` < 1 keeps the smallest set of likeliest tokens
    whose probability reaches p (nucleus sampling, Holtzman et al., 2019).
    """
    if temperature < 1e-6:
        return logits_BV.argmax(-1)
    logits_BV, order_BV = logits_BV.float().sort(-1, descending=True)
    probability_BV = ((logits_BV - logits_BV[:, :1]) / temperature).softmax(-1)  # no overflow, however cold
    if top_k > 0:
        probability_BV[:, top_k:] = 0
    if top_p < 1:
        probability_BV = probability_BV / probability_BV.sum(-1, keepdim=True)
        before_BV = probability_BV.cumsum(-1) - probability_BV
        probability_BV[:, 1:] = probability_BV[:, 1:].masked_fill(before_BV[:, 1:] >= top_p, 0)
    drawn_B1 = torch.multinomial(probability_BV, 1, generator=generator)
    return order_BV.gather(1, drawn_B1).squeeze(1)


@torch.no_grad()
def generate(
    model: GPT,
    prompt_BT: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each prompt (at least one token) by `n_tokens` and return the new tokens, BN.

    A longer prompt than the context is read from its last `context` tokens. When the context is full, the model goes
    on from the latter half of it: every token is then predicted from at least half a context, at positions that
    training has seen, and the cache is rebuilt only now and then.
    """
    batch, context = len(prompt_BT), model.config.context
    tokens_BT, new_BT = prompt_BT, prompt_BT[:, -context:]
    dtype = model.embedding.weight.dtype
    if torch.is_autocast_enabled(prompt_BT.device.type):
        dtype = torch.get_autocast_dtype(prompt_BT.device.type)
    cache = KVCache(model.config, batch, prompt_BT.device, dtype)
    for _ in range(n_tokens):
        if cache.length + new_BT.shape[1] > context:
            cache.length = 0
            new_BT = tokens_BT[:, -max(context // 2, 1) :]
        logits_BV = model(new_BT, cache)[:, -1]
        new_BT = next_token(logits_BV, temperature, top_k, top_p, generator)[:, None]
        tokens_BT = torch.cat((tokens_BT, new_BT), dim=1)
    return tokens_BT[:, prompt_BT.shape[1] :]
