"""Which document goes to which split. The content alone decides, never the order of documents or chance."""

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


def plan_splits(corpus: Corpus, config: DataConfig) -> tuple[Plan, int]:
    """Return the plan that splits each document, and the bytes of all documents together.

    Documents go by the hash of their content: the first to val, then to test, until each has its share of bytes, and
    the rest to train. Equal documents stay together. Where train would get less than half of its share, each document
    is cut instead. Memory holds 16 bytes a document, and about 70 while they are sorted.

    Raises:
        UserError: the corpus is empty.
    """
    keys, sizes = array("Q"), array("Q")
    for document in corpus.documents():
        if document.text:
            content = document.text.encode()
            keys.append(_key(content))
            sizes.append(len(content))
    if not keys:
        raise UserError(f"corpus {corpus.name!r} is empty: it holds no text.")
    shares = config.val_fraction, config.test_fraction
    last_keys = split_documents(np.array(keys), np.array(sizes), *shares)

    def cut(text: str) -> Iterable[tuple[str, str]]:
        return zip(SPLITS, cut_document(text, *shares), strict=True)

    if last_keys is None:
        return cut, sum(sizes)
    last_val, last_test = last_keys

    def whole(text: str) -> Iterable[tuple[str, str]]:
        key = _key(text.encode())
        if key <= last_val:
            return [("val", text)]
        return [("test" if key <= last_test else "train", text)]

    return whole, sum(sizes)


def _key(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def split_documents(
    keys: np.ndarray, sizes: np.ndarray, val_fraction: float, test_fraction: float
) -> tuple[int, int] | None:
    """Return the last key of val and the last of test, where documents in the order of keys are val, test, train.

    Returns None if whole documents are too few, or so large that train would get less than half of its share of bytes.
    """
    order = np.argsort(keys)
    keys, ends = keys[order], np.cumsum(sizes[order])
    # Equal documents have one key and count as one, whose end is that of the last of them.
    is_last = np.append(keys[1:] != keys[:-1], True)
    keys, ends = keys[is_last], ends[is_last]
    total = ends[-1]
    val = int(np.searchsorted(ends, val_fraction * total))
    test = val
    if test_fraction:
        test = int(np.searchsorted(ends, ends[val] + test_fraction * total))
    if test >= len(keys) or total - ends[test] < (1 - val_fraction - test_fraction) / 2 * total:
        return None
    return int(keys[val]), int(keys[test])


def cut_document(text: str, val_fraction: float, test_fraction: float) -> tuple[str, str, str]:
    """Return the train, val and test part of one text, in this order, cut at the start of a line where possible."""
    train_end = line_start(text, 0, round((1 - val_fraction - test_fraction) * len(text)))
    val_end = len(text)
    if test_fraction:
        val_end = line_start(text, train_end, round((1 - test_fraction) * len(text)))
    return text[:train_end], text[train_end:val_end], text[val_end:]


def line_start(text: str, low: int, near: int) -> int:
    """Return the last start of a line before `near`, or `near` itself where that line is too long.

    A line is too long if it has more than LINE characters before `near`, or more than half of those from `low` on.
    """
    lowest = max((low + near) // 2, near - LINE)
    # rfind returns -1 where there is no line's end; plus 1 that is 0, and the cut is made within the line.
    return text.rfind("\n", lowest, near) + 1 or near
