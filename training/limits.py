"""What a run needs, checked before any work: this machine's devices and memory, data that fit, hosts that agree."""

import sys

from data.config import parse_tokenizer
from data.corpus import check_corpus
from data.dataset import Dataset
from errors import UserError
from model.size import size
from training.config import RunConfig, build, differences, tree
from training.ddp import Process, world_size
from training.device import check_compiler, pick_device, pick_precision, total_memory

GIB = 1 << 30
OFTEN = 100  # times that a text is read
# Numbers in fp32 for each weight in training: the weight, its gradient, and what the optimiser keeps of it at least.
NUMBERS = {"adamw": 4, "muon": 3, "sgd": 2}


def check_available(config: RunConfig) -> None:
    """Raise `UserError` for what this machine lacks: a corpus, device, compiler, or memory.

    It is called before a folder is made or text is fetched. A step larger than the run's budget is refused here too.
    """
    check_budget(config)
    check_corpus(config.data)
    check_memory(config)  # of the device, which has to be there
    if config.train.compile:
        check_compiler()


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
    need = 4 * size(m, parse_tokenizer(config.data.tokenizer)[1]).total
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


def warn_of_repetition(config: RunConfig, data: Dataset) -> None:
    """Print a warning if a run reads its text so often that it learns it by heart."""
    times = config.train.tokens / len(data.train.tokens_N)
    if times >= OFTEN:
        print(
            f"warning: train.tokens = {config.train.tokens:,} reads the training text {times:,.0f} times "
            f"({len(data.train.tokens_N):,} tokens). Use fewer tokens or a longer text.",
            file=sys.stderr,
        )


def check_context(config: RunConfig, data: Dataset) -> None:
    """Raise `UserError` if the training split does not fill one context."""
    if len(data.train.tokens_N) <= config.model.context:
        most = config.data.max_tokens
        limited = f" under data.max_tokens = {most}" if most else ""
        raise UserError(
            f"model.context = {config.model.context} is longer than the training split of {config.data.corpus}"
            f"{limited}, {len(data.train.tokens_N)} tokens. Use model.context = {len(data.train.tokens_N) - 1} or less."
        )


def check_same_everywhere(config: RunConfig, data: Dataset, process: Process) -> None:
    """Raise `UserError` in a process that would not train what the first one does: hosts may differ."""
    if process.size == 1:
        return
    mine = pick_precision(config.train.precision, pick_device(config.train.device))
    theirs, fingerprint, precision = process.first(lambda: [tree(config), data.fingerprint, mine])
    lines = differences(build(theirs, "the config of the first process"), config)
    if fingerprint != data.fingerprint:
        lines.append(f"other tokens: is {config.data.corpus} equal on all hosts?")
    if mine != precision:
        lines.append(f"precision {mine}, and {precision} in the first: set --train.precision on all hosts.")
    if lines:
        raise UserError("\n  ".join(["a process would not train what the first one does:", *lines]))
