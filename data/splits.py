"""Which document goes to which split. The content and a seed decide, never the order of documents."""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from data.config import DataConfig
from data.documents import Corpus
from errors import UserError

SPLITS = ("train", "val", "test")
FEWEST_DOCUMENTS = 4  # in val and in test: a score on one document would be about that document
LINE = 4096  # characters: a line longer than that is cut
Plan = Callable[[str], Iterable[tuple[str, str]]]  # text of a document -> (split, text) of each of its parts


def plan_splits(corpus: Corpus, config: DataConfig) -> tuple[Plan, int]:
    """Return the plan that splits each document, and the bytes of all documents together.

    Documents go by a hash of `split_seed` and their content: the first to val, then to test, until each has its share
    of bytes, and the rest to train. Equal documents stay together.

    A held-out document gives its first bytes, at most a quarter of the share, so that four documents or more are scored
    and none is long. What remains of it goes to no split, since training on it would make the score too good. With few
    documents this could leave train less than half of its share. Then one document may fill a whole share; where even
    that leaves train too little, each document is cut instead, and `split_seed` changes nothing.

    Memory holds 16 bytes a document, and about 70 while they are sorted.

    Raises:
        UserError: the corpus is empty.
    """
    keys, sizes = array("Q"), array("Q")
    for document in corpus.documents():
        if document.text:
            content = document.text.encode()
            keys.append(_key(content, config.split_seed))
            sizes.append(len(content))
    if not keys:
        raise UserError(f"corpus {corpus.name!r} is empty: it holds no text.")
    shares = config.val_fraction, config.test_fraction
    n_bytes = sum(sizes)
    for fewest in (FEWEST_DOCUMENTS, 1):
        last_keys = split_documents(np.array(keys), np.array(sizes), *shares, fewest)
        if last_keys:
            break
    else:
        return lambda text: zip(SPLITS, cut_document(text, *shares), strict=True), n_bytes
    last_val, last_test = last_keys
    most_val, most_test = (most_of_one(n_bytes, share, fewest) for share in shares)

    def whole(text: str) -> Iterable[tuple[str, str]]:
        key = _key(text.encode(), config.split_seed)
        if key <= last_val:
            return [("val", first_bytes(text, most_val))]
        return [("test", first_bytes(text, most_test)) if key <= last_test else ("train", text)]

    return whole, n_bytes


def _key(content: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d/" % seed + content).digest()[:8])


def most_of_one(n_bytes: int, fraction: float, fewest: int) -> int:
    """Return how many bytes a document may give to a split that has that fraction of `n_bytes`.

    `fewest` documents, all as long as that, fill the split.
    """
    return math.ceil(n_bytes * fraction / fewest)


def split_documents(
    keys: np.ndarray, sizes: np.ndarray, val_fraction: float, test_fraction: float, fewest: int
) -> tuple[int, int] | None:
    """Return the last key of val and the last of test, where documents in the order of keys are val, test, train.

    No document counts for more than `most_of_one` in val and test. Returns None if whole documents are too few, or so
    large that train would get less than half of its share of bytes.
    """
    order = np.argsort(keys)
    keys, sizes = keys[order], sizes[order]
    # Equal documents have one key and count as one, whose end is that of the last of them.
    is_last = np.append(keys[1:] != keys[:-1], True)
    keys, ends = keys[is_last], np.cumsum(sizes)[is_last]
    total = int(ends[-1])
    last = -1
    last_keys = []
    for fraction in (val_fraction, test_fraction):
        if fraction:
            given = np.minimum(sizes, most_of_one(total, fraction, fewest))
            ends_of_split = np.cumsum(given)[is_last]
            before = ends_of_split[last] if last >= 0 else 0
            last = int(np.searchsorted(ends_of_split, before + fraction * total))
        if last >= len(keys):
            return None
        last_keys.append(int(keys[last]))
    if total - ends[last] < (1 - val_fraction - test_fraction) / 2 * total:
        return None
    return last_keys[0], last_keys[1]


def first_bytes(text: str, n_bytes: int) -> str:
    """Return the text up to about `n_bytes` of its UTF-8, cut at the start of a line where possible."""
    size = len(text.encode())
    return text if size <= n_bytes else text[: line_start(text, 0, round(len(text) * n_bytes / size))]


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
