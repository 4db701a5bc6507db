"""The score of a run, finished or not, on its own data or on any other text."""

import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from data.corpus import open_corpus
from data.dataset import prepare
from data.encode import Split, encode_whole
from errors import UserError
from model.gpt import GPT
from training.config import RunConfig, build
from training.contents import read_config
from training.device import pick_device, pick_precision
from training.evaluate import Score, evaluate
from training.sample import load_model


def score_run(folder: Path, device_name: str) -> dict[str, Score]:
    """Score the newest checkpoint of a run on its whole validation and test splits, and print it.

    Raises:
        UserError: it is not a run, has no checkpoint, or its data have changed since.
    """
    config = read_config(folder)
    device = pick_device(device_name)
    model, _, state = load_model(folder, device)
    data = prepare(config.data, config.train.seed)
    if state["fingerprint"] != data.fingerprint:
        raise UserError(f"{folder} was trained on other data: the corpus {config.data.corpus} has changed since.")
    splits = {"val": data.val} | ({"test": data.test} if data.test else {})
    return {name: _score(model, split, config, device, state["step"], name) for name, split in splits.items()}


def score_text(folder: Path, device_name: str, corpus: str, column: str | None) -> Score:
    """Score the newest checkpoint of a run on the whole of another corpus, with the run's own tokenizer, and print it.

    Raises:
        UserError: it is not a run, or has no checkpoint; the corpus cannot be read, is empty, or is the run's own.
    """
    config = read_config(folder)
    data = build({"data": {"corpus": corpus} | ({} if column is None else {"column": column})}, "flags").data
    # The training text would get a score that is too good.
    scored, trained = open_corpus(data), None
    with suppress(UserError):  # its own corpus may be gone
        trained = open_corpus(config.data).fingerprint
    if scored.fingerprint == trained:
        raise UserError(
            f"{folder} is trained on {corpus!r}: leave --data.corpus out to score what it held out of that."
        )
    device = pick_device(device_name)
    model, tokenizer, state = load_model(folder, device)
    with tempfile.TemporaryDirectory() as temporary:
        split = encode_whole(scored, tokenizer, Path(temporary))
        return _score(model, split, config, device, state["step"], f"{corpus}: all {split.n_documents:,} documents")


def _score(model: GPT, split: Split, config: RunConfig, device: torch.device, step: int, name: str) -> Score:
    precision = pick_precision(config.train.precision, device)
    found = evaluate(model, split, config.micro_batch, precision, shown=f"scoring {name}")
    figures = f"loss {found.loss:.4f} nats/token  perplexity {found.perplexity:.3f}"
    of = f"{len(split.tokens_N) - 1:,} tokens, step {step}, {precision}"
    print(f"{name:<5} {figures}  {found.bits_per_byte:.4f} bits/byte  ({of})")
    return found
