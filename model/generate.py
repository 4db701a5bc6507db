"""Text generation with a key-value cache."""

import torch
from torch import Tensor

from model.decoder import decoding
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
    kept = min(top_k or logits_BV.shape[1], logits_BV.shape[1])
    order_BK, logits_BK = None, logits_BV.float()
    if kept < logits_BV.shape[1] or top_p < 1:
        logits_BK, order_BK = logits_BK.topk(kept)  # likeliest first
    sum_BK = (logits_BK / temperature).softmax(-1).cumsum(-1)
    total_B1 = sum_BK[:, -1:]
    if top_p < 1:
        last_B1 = torch.searchsorted(sum_BK, top_p * total_B1).clamp(max=kept - 1)
        total_B1 = sum_BK.gather(1, last_B1)
    # where the sum first exceeds a uniform number: far cheaper than torch.multinomial's one for each token
    uniform_B1 = torch.rand(total_B1.shape, device=total_B1.device, generator=generator)
    drawn_B1 = torch.searchsorted(sum_BK, uniform_B1 * total_B1, right=True).clamp(max=kept - 1)
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

    A longer prompt than the context is read from its last `context` tokens. When the context is full, the model goes
    on from the latter half of it: every token is then predicted from at least half a context, at positions that
    training has seen, and the cache is rebuilt only now and then.
    """
    (batch, read), context = prompt_BT.shape, model.config.context
    tokens_BT = torch.cat((prompt_BT, prompt_BT.new_empty(batch, n_tokens)), dim=1)
    first = max(read - context, 0)  # of the positions that the model reads next
    with torch.inference_mode(), decoding(model, batch) as decoder:
        for end in range(read, read + n_tokens):
            if decoder.length + end - first > context:
                decoder.length, first = 0, end - max(context // 2, 1)
            logits_BV = decoder.read(tokens_BT[:, first:end])
            tokens_BT[:, end] = next_token(logits_BV, temperature, top_k, top_p, generator)
            first = end
    return tokens_BT[:, read:]
