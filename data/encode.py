"""Documents -> files of token ids, in constant memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.documents import Corpus
from data.splits import Plan, utf8
from data.tokenizer import Tokenizer
from errors import UserError

CHUNK = 1 << 22  # characters encoded at a time; longer documents whole


@dataclass(frozen=True)
class Split:
    """Tokens of a split, N of them, read-only on disk; each document starts with <|endoftext|>. `n_bytes` of UTF-8."""

    tokens_N: np.ndarray
    n_bytes: int
    n_documents: int


@dataclass(frozen=True)
class Part:
    """What one document gives to a split."""

    name: str
    split: str
    text: str


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """Return the smallest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)


def write_splits(
    folder: Path,
    splits: tuple[str, ...],
    corpus: Corpus,
    plan: Plan,
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> dict[str, dict[str, int]]:
    """Write {split}.bin, and documents.jsonl with the place of each part; return the counts of each split.

    `advance` is told the bytes of each part as it is written.
    """
    dtype = dtype_of(tokenizer)
    counts = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in splits}
    with ExitStack() as stack:
        bins = {split: stack.enter_context((folder / f"{split}.bin").open("wb")) for split in splits}
        index = stack.enter_context((folder / "documents.jsonl").open("w", encoding="utf-8"))
        for chunk in _parts(corpus, plan):
            for part, ids in zip(chunk, tokenizer.encode_batch([part.text for part in chunk]), strict=True):
                bins[part.split].write(np.array([tokenizer.eot], dtype).tobytes() + ids.astype(dtype).tobytes())
                count, size = counts[part.split], {"tokens": len(ids) + 1, "bytes": len(utf8(part.text))}
                place = {"name": part.name, "split": part.split, "offset": count["tokens"], **size}
                index.write(json.dumps(place) + "\n")
                for key, amount in {**size, "documents": 1}.items():
                    count[key] += amount
                advance(size["bytes"])
    return counts


def open_split(path: Path, dtype: str, counts: dict[str, int]) -> Split:
    """Return a split that `write_splits` wrote."""
    return Split(np.memmap(path, dtype, "r"), counts["bytes"], counts["documents"])


def encode_whole(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Split:
    """Return all documents of a corpus as one split, whose file is written into the folder.

    Raises:
        UserError: the corpus is empty, or as when its documents are read.
    """
    counts = write_splits(folder, ("all",), corpus, lambda text: [("all", text)], tokenizer, lambda size: None)["all"]
    if not counts["tokens"]:
        raise UserError(f"corpus {corpus.name!r} is empty: it holds no text.")
    return open_split(folder / "all.bin", dtype_of(tokenizer).name, counts)


def _parts(corpus: Corpus, plan: Plan) -> Iterator[list[Part]]:
    """Yield the documents' parts, some at a time, so that memory stays constant and all cores encode."""
    chunk, size = [], 0
    for document in corpus.documents():
        for split, text in plan(document.text):
            if text:
                chunk.append(Part(document.name, split, text))
                size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    yield chunk
