"""What a run needs, counted from its config before any work: a step within the budget, memory for network and batch."""

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
    if config.tokens_per_step > c.tokens:
        raise UserError(
            f"train.batch_size = {c.batch_size:,} and model.context = {m.context:,} make a step of "
            f"{config.tokens_per_step:,} tokens, more than the budget, train.tokens = {c.tokens:,}. "
            f"Set train.tokens = {config.tokens_per_step} or more, or a smaller train.batch_size."
        )


def check_memory(config: RunConfig, training: bool = True) -> None:
    """Raise `UserError` for a network and batch that the memory of this machine cannot hold for certain.

    What is counted is less than a run needs, so that one that passes may still run out of memory. Without `training`
    the weights alone are counted.
    """
    m, c = config.model, config.train
    # Linux promises more memory than there is and then kills the process, which could give no message.
    memory = total_memory(pick_device(c.device if training else "auto"))
    need = 4 * least_weights(m, parse_tokenizer(config.data.tokenizer)[1])
    if training:
        need *= NUMBERS[c.optimizer]
        # All tokens of a step with their targets, as int64.
        need += 16 * config.tokens_per_step
        # Queries, keys and values of a micro-batch, in bf16.
        need += 6 * m.n_layer * m.d_model * config.tokens_per_step // c.accumulate // world_size()
    if need > memory:
        raise UserError(
            f"model.n_layer = {m.n_layer:,}, model.d_model = {m.d_model:,}, model.context = {m.context:,} and "
            f"train.batch_size = {c.batch_size:,} need {need / GIB:,.0f} GiB or more, and this machine has "
            f"{memory / GIB:,.0f} GiB. Use a smaller value of one of them."
        )
