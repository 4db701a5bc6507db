"""What a run needs, counted from its config before any work: a step within the budget, memory for network and batch."""

from collections.abc import Callable

from data.config import parse_tokenizer
from errors import UserError
from model.size import least_weights
from training.config import RunConfig
from training.ddp import world_size
from training.device import pick_device, total_memory

GIB = 1 << 30
# Numbers in fp32 for each weight in training: the weight, its gradient, and what the optimiser keeps of it at least.
NUMBERS = {"adamw": 4, "muon": 3, "sgd": 2}


def check_budget(config: RunConfig) -> None:
    """Raise `UserError` for a step that has more tokens than the whole run."""
    m, c = config.model, config.train
    if config.tokens_per_step <= c.tokens:
        return
    batch = c.tokens // m.context // c.accumulate * c.accumulate
    smaller = f", or train.batch_size = {batch} or less" if batch else ""
    raise UserError(
        f"train.batch_size = {c.batch_size:,} and model.context = {m.context:,} make a step of "
        f"{config.tokens_per_step:,} tokens, more than the budget, train.tokens = {c.tokens:,}. "
        f"Set train.tokens = {config.tokens_per_step} or more{smaller}."
    )


def check_memory(config: RunConfig, training: bool = True) -> None:
    """Raise `UserError` for a network and batch that the memory of this machine cannot hold for certain.

    What is counted is less than a run needs, so that one that passes may still run out of memory. Without `training`
    the weights alone are counted.
    """
    m, c = config.model, config.train
    n_vocab = parse_tokenizer(config.data.tokenizer)[1]
    memory = total_memory(pick_device(c.device if training else "auto"))

    def need(n_layer: int, d_model: int, batch_size: int) -> int:
        numbers = NUMBERS[c.optimizer] if training else 1
        weights = 4 * numbers * least_weights(m, n_vocab, n_layer, d_model)
        tokens = batch_size * m.context if training else 0
        # All tokens with their targets as int64, and queries, keys and values of a micro-batch in bf16.
        here = tokens // c.accumulate // world_size()
        return weights + 16 * tokens + 2 * 3 * d_model * n_layer * here

    own = need(m.n_layer, m.d_model, c.batch_size)
    if own <= memory:
        return
    heads, parts = 2 * m.n_head, c.accumulate
    could_fit = {
        "train.batch_size": parts
        * largest(lambda n: need(m.n_layer, m.d_model, n * parts) <= memory, c.batch_size // parts),
        "model.n_layer": largest(lambda n: need(n, m.d_model, c.batch_size) <= memory, m.n_layer),
        "model.d_model": heads
        * largest(lambda n: need(m.n_layer, n * heads, c.batch_size) <= memory, m.d_model // heads),
    }
    options = [f"{name} = {value}" for name, value in could_fit.items() if value]
    raise UserError(
        f"model.n_layer = {m.n_layer:,}, model.d_model = {m.d_model:,}, model.context = {m.context:,} and "
        f"train.batch_size = {c.batch_size:,} need {own / GIB:,.0f} GiB or more, and this machine has "
        f"{memory / GIB:,.0f} GiB. {' or '.join(options) or 'A smaller value of each'} could fit."
    )


def largest(fits: Callable[[int], bool], top: int) -> int:
    """Return the largest number from 0 to `top` that fits, where all below one that fits do so too."""
    low = 0
    while low < top:
        middle = (low + top + 1) // 2
        if fits(middle):
            low = middle
        else:
            top = middle - 1
    return low
