"""Documents -> files of token ids, in constant memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.documents import Corpus
from data.splits import Plan
from data.tokenizer import Tokenizer
from errors import UserError
from files import own_file

CHUNK = 1 << 22  # characters encoded at a time, so that all cores have work; a longer document is encoded whole
DTYPE = np.dtype(np.uint16)  # holds every id, since no tokenizer may have more than config.MAX_BPE


@dataclass(frozen=True)
class Split:
    """The N tokens of a split, read-only on disk. Each document starts with <|endoftext|>. `n_bytes` is their UTF-8."""

    tokens_N: np.ndarray
    n_bytes: int
    n_documents: int


def write_splits(
    folder: Path,
    splits: tuple[str, ...],
    corpus: Corpus,
    plan: Plan,
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> dict[str, dict[str, int]]:
    """Write {split}.bin, and documents.jsonl with the place of each part. Return the counts of each split.

    `advance` is called with the bytes of each part after it is written.

    Raises:
        UserError: a split is empty.
    """
    start = np.array([tokenizer.eot], DTYPE).tobytes()
    counts = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in splits}
    with ExitStack() as stack:
        token_files = {split: stack.enter_context((folder / f"{split}.bin").open("wb")) for split in splits}
        index = stack.enter_context((folder / "documents.jsonl").open("w", encoding="utf-8"))
        for chunk in _chunks(corpus, plan):
            encoded = tokenizer.encode_batch([text for _, _, text in chunk])
            for (name, split, text), ids in zip(chunk, encoded, strict=True):
                token_files[split].write(start + ids.astype(DTYPE).tobytes())
                count, n_tokens, n_bytes = counts[split], len(ids) + 1, len(text.encode())
                place = {"offset": count["tokens"], "tokens": n_tokens, "bytes": n_bytes}
                index.write(json.dumps({"name": name, "split": split, **place}) + "\n")
                count["tokens"] += n_tokens
                count["bytes"] += n_bytes
                count["documents"] += 1
                advance(n_bytes)
    if empty := [split for split in splits if not counts[split]["tokens"]]:
        way_out = "Use a larger corpus, or a larger --data.max_tokens where it is limited."
        raise UserError(f"corpus {corpus.name!r} is too small: {' and '.join(empty)} is empty. {way_out}")
    return counts


def open_split(path: Path, counts: dict[str, int], n_vocab: int) -> Split:
    """Return a split that `write_splits` wrote.

    Raises:
        Damaged: it has other counts, or a token that the tokenizer does not have. A network pads its vocabulary, so
            that it would read rows that are not trained.
    """
    with own_file(path):
        tokens_N = np.memmap(path, DTYPE, "r")
        if len(tokens_N) != counts["tokens"] or tokens_N.max() >= n_vocab:
            raise ValueError(f"it is not {counts['tokens']} tokens below {n_vocab}")
        return Split(tokens_N, counts["bytes"], counts["documents"])


def encode_whole(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Split:
    """Return all documents of a corpus as one split, whose file is written into the folder.

    Raises:
        UserError: the corpus is empty or cannot be read.
    """
    name = "text"
    counts = write_splits(folder, (name,), corpus, lambda text: [(name, text)], tokenizer, lambda n_bytes: None)
    return open_split(folder / f"{name}.bin", counts[name], tokenizer.n_vocab)


def _chunks(corpus: Corpus, plan: Plan) -> Iterator[list[tuple[str, str, str]]]:
    """Yield about CHUNK characters at a time: (name, split, text) of what each document gives to a split."""
    chunk, size = [], 0
    for document in corpus.documents():
        for split, text in plan(document.text):
            if text:
                chunk.append((document.name, split, text))
                size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    yield chunk
