"""What a run reads: the corpus, how text becomes tokens, how documents are split. Imports nothing heavy."""

import re
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import STRICT, UserError, unknown

# The smallest BPE has the 256 bytes and <|endoftext|>. The largest has all ids that fit into 16 bits.
MIN_BPE, MAX_BPE = 257, 65_536
FOLLOW_SEED = -1  # as split_seed: the run's own seed


def parse_tokenizer(spec: str) -> tuple[str, int]:
    """Return (kind, n_vocab) of a tokenizer's name, <|endoftext|> counted. Raises UserError with the nearest name."""
    fixed = {"bytes": 257, "gpt2": 50_257}
    if spec in fixed:
        return spec, fixed[spec]
    number = re.fullmatch(r"bpe:(\d+)", spec)
    if number and MIN_BPE <= int(number[1]) <= MAX_BPE:
        return "bpe", int(number[1])
    names = unknown("tokenizer", spec, [*fixed, "bpe:N"])
    raise UserError(f"{names} N is from {MIN_BPE} to {MAX_BPE}, such as bpe:1024.")


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """The corpus, its tokenizer and its splits."""

    corpus: Annotated[
        str,
        Field(
            description="shakespeare, webster, stdlib (needs no network), or a path or glob of .txt, .jsonl or "
            ".parquet. Also a Hugging Face data set, streamed: owner/name, owner/name:config, or such a folder."
        ),
    ] = "shakespeare"
    tokenizer: Annotated[
        str,
        Field(
            description=f"bytes, gpt2, or bpe:N, trained on the training split to N token ids ({MIN_BPE} to {MAX_BPE})."
        ),
    ] = "bpe:1024"
    column: Annotated[
        str, Field(min_length=1, description="Column that holds the text, in .jsonl, .parquet and Hugging Face data.")
    ] = "text"
    max_tokens: Annotated[
        int,
        Field(
            ge=0,
            description="Use about this many tokens, from the start of the corpus, before it is split. "
            "0 uses all of it.",
        ),
    ] = 0
    split_seed: Annotated[
        int,
        Field(
            ge=FOLLOW_SEED,
            lt=2**63,
            description="Chooses the documents for validation and test. -1 follows train.seed: each seed then holds "
            "out other documents.",
        ),
    ] = 0
    val_fraction: Annotated[
        float, Field(gt=0, lt=1, description="Share of the corpus's bytes for validation, above 0 and below 1.")
    ] = 0.03
    test_fraction: Annotated[
        float, Field(ge=0, lt=1, description="Share of the corpus's bytes for the test split, below 1. 0 makes none.")
    ] = 0.03

    def of_run(self, seed: int) -> "DataConfig":
        """Return the config with the split of a run of that seed: `split_seed` is the seed itself where it is -1."""
        return replace(self, split_seed=seed) if self.split_seed == FOLLOW_SEED else self

    def __post_init__(self) -> None:
        parse_tokenizer(self.tokenizer)
        if self.val_fraction + self.test_fraction >= 1:
            shares = f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction}"
            raise UserError(f"{shares} leaves nothing to train on: their sum must be below 1.")
