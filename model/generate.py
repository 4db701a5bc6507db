"""Text generation with a key-value cache."""

import torch
from torch import Tensor

from model.gpt import GPT, Cache


def next_token(
    logits_BV: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw one token a row, B. A temperature of (nearly) 0 takes the likeliest.

    `top_k` > 0 keeps the k likeliest tokens (Fan et al., 2018). `top_p` < 1 keeps the smallest set of likeliest tokens
    whose probability reaches p (nucleus sampling, Holtzman et al., 2019).
    """
    if temperature < 1e-6:
        return logits_BV.argmax(-1)
    V = logits_BV.shape[1]
    k = min(top_k or V, V)
    order_BK, logits_BK = None, logits_BV.float()
    if k < V or top_p < 1:
        logits_BK, order_BK = logits_BK.topk(k)  # the likeliest first
    sum_BK = (logits_BK / temperature).softmax(-1).cumsum(-1)
    total_B1 = sum_BK[:, -1:]
    if top_p < 1:
        last_B1 = torch.searchsorted(sum_BK, top_p * total_B1).clamp(max=k - 1)
        total_B1 = sum_BK.gather(1, last_B1)
    # The token at which the cumulative sum first exceeds a uniform number. torch.multinomial draws a random number for
    # every token of the vocabulary instead, which takes far longer.
    uniform_B1 = torch.rand(total_B1.shape, device=total_B1.device, generator=generator)
    drawn_B1 = torch.searchsorted(sum_BK, uniform_B1 * total_B1, right=True).clamp(max=k - 1)
    return (drawn_B1 if order_BK is None else order_BK.gather(1, drawn_B1)).squeeze(1)


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

    Of a prompt longer than the context, the last `context` tokens are read. When the context is full, the model goes on
    from the latter half of it. Every token is then predicted from at least half a context, at positions that training
    has seen, and the cache is rebuilt only now and then.
    """
    (batch, length), context = prompt_BT.shape, model.config.context
    # Made outside of inference mode, so that a model can be trained on the tokens.
    tokens_BT = torch.cat((prompt_BT, prompt_BT.new_empty(batch, n_tokens)), dim=1)
    unread = max(length - context, 0)  # the first position that the model has not read
    with torch.inference_mode():
        cache = Cache(model, batch)
        for end in range(length, length + n_tokens):
            if cache.length + end - unread > context:
                cache.length = 0
                unread = end - max(context // 2, 1)
            logits_BTV = model(tokens_BT[:, unread:end], cache=cache)
            tokens_BT[:, end] = next_token(logits_BTV[:, -1], temperature, top_k, top_p, generator)
            unread = end
    return tokens_BT[:, length:]
