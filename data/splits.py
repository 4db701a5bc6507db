"""Which document goes to which split: a function of the documents' content alone, never of their order or of chance."""

import hashlib
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from data.config import DataConfig
from data.documents import Corpus
from errors import UserError

SPLITS = ("train", "val", "test")
LINE = 4096  # characters: a line longer than that is cut
Plan = Callable[[str], Iterable[tuple[str, str]]]  # text of a document -> (split, text) of each of its parts


def utf8(text: str) -> bytes:
    """Return the bytes that a text counts for: a lone surrogate as many as U+FFFD, which the tokenizer makes of it."""
    return text.encode("utf-8", "surrogatepass")


def plan_splits(corpus: Corpus, config: DataConfig) -> tuple[Plan, int]:
    """Return the plan that splits each document, and the bytes of them all.

    Holds 16 bytes a document, and some 70 while they are sorted.

    Documents go by the hash of their content to val, then test, until each has its share of bytes; the rest trains,
    and equal documents stay together. Where that leaves less than half of its share to train on, each document is cut.

    Raises:
        UserError: the corpus is empty.
    """
    keys, sizes = array("Q"), array("Q")
    for document in corpus.documents():
        if document.text:
            keys.append(_key(document.text))
            sizes.append(len(utf8(document.text)))
    if not keys:
        raise UserError(f"corpus {corpus.name!r} is empty: it holds no text.")
    shares = config.val_fraction, config.test_fraction
    last_keys = split_documents(np.array(keys), np.array(sizes), *shares)
    if last_keys is None:
        return lambda text: zip(SPLITS, cut_document(text, *shares), strict=True), sum(sizes)
    val_last, test_last = last_keys

    def whole(text: str) -> list[tuple[str, str]]:
        key = _key(text)
        return [("val" if key <= val_last else "test" if key <= test_last else "train", text)]

    return whole, sum(sizes)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(utf8(text)).digest()[:8])


def split_documents(
    keys: np.ndarray, sizes: np.ndarray, val_fraction: float, test_fraction: float
) -> tuple[int, int] | None:
    """Return the last key of val and the last of test, in the order of keys: val, test, train.

    None: whole documents are too few, or so large that train would get less than half of its share of bytes.
    """
    order = np.argsort(keys)
    keys, ends = keys[order], np.cumsum(sizes[order])
    last = np.append(keys[1:] != keys[:-1], True)  # equal documents count as one
    keys, ends = keys[last], ends[last]
    val = int(np.searchsorted(ends, val_fraction * ends[-1]))
    test = int(np.searchsorted(ends, ends[val] + test_fraction * ends[-1])) if test_fraction else val
    if test >= len(keys) or ends[-1] - ends[test] < (1 - val_fraction - test_fraction) / 2 * ends[-1]:
        return None
    return int(keys[val]), int(keys[test])


def cut_document(text: str, val_fraction: float, test_fraction: float) -> tuple[str, str, str]:
    """Return the train, val and test part of one text, in this order, cut by characters: see `line_start`."""
    train_end = line_start(text, 0, round((1 - val_fraction - test_fraction) * len(text)))
    val_end = line_start(text, train_end, round((1 - test_fraction) * len(text))) if test_fraction else len(text)
    return text[:train_end], text[train_end:val_end], text[val_end:]


def line_start(text: str, low: int, near: int) -> int:
    """Return the last start of a line before `near`, or `near` itself where the line before it is long.

    That is: where it has more than LINE characters, or more than half of those from `low` on.
    """
    return text.rfind("\n", max((low + near) // 2, near - LINE), near) + 1 or near
