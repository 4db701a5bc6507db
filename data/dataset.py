"""Corpus -> token files, made once: keyed by content, written beside and renamed, checked on every use."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.progress import Progress

from data.assets import cache_faults, cache_folder, console, sha256_of
from data.config import DataConfig
from data.corpus import Corpus, open_corpus
from data.splits import SPLITS, Plan, plan_splits, utf8
from data.tokenizer import Tokenizer, train_tokenizer
from errors import UserError

FORMAT = 1  # part of the key: raise it when the same corpus and config would give other files
CHUNK = 1 << 22  # characters encoded at a time; longer documents whole


@dataclass(frozen=True)
class Split:
    """Tokens of a split, N of them, read-only on disk; each document starts with <|endoftext|>. `n_bytes` of UTF-8."""

    tokens_N: np.ndarray
    n_bytes: int
    n_documents: int


@dataclass(frozen=True)
class Dataset:
    """The splits and their tokenizer. `fingerprint` tells the tokens: equal for equal tokens, on any machine."""

    train: Split
    val: Split
    test: Split | None
    tokenizer: Tokenizer
    fingerprint: str
    folder: Path


def prepare(config: DataConfig) -> Dataset:
    """Return the config's tokens, made if the cache does not hold them. Processes may call it at once: one makes them.

    Raises:
        UserError: a corpus or tokenizer that cannot be had, too small a corpus, a cache that cannot be used.
    """
    corpus = open_corpus(config)
    recipe = [FORMAT, corpus.fingerprint, *astuple(config)[1:]]  # the corpus counts by its content, not its name
    folder = cache_folder() / "datasets" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    with cache_faults():
        if not _is_whole(folder):
            with FileLock(f"{folder}.lock"):
                if not _is_whole(folder):
                    _make(folder, corpus, config)
        return _open(folder)


def _is_whole(folder: Path) -> bool:
    try:
        return all(sha256_of(folder / name) == digest for name, digest in _meta(folder)["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def _meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def _open(folder: Path) -> Dataset:
    meta = _meta(folder)
    splits = {
        name: Split(np.memmap(folder / f"{name}.bin", meta["dtype"], "r"), counts["bytes"], counts["documents"])
        for name, counts in meta["splits"].items()
    }
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Dataset(splits["train"], splits["val"], splits.get("test"), tokenizer, meta["fingerprint"], folder)


def _make(folder: Path, corpus: Corpus, config: DataConfig) -> None:
    if folder.exists():
        console.print(f"warning: {folder} is damaged: making it again")
        shutil.rmtree(folder)
    partial = folder.with_suffix(".partial")  # under the lock, what lies there was left by a process that died
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _fill(partial, corpus, config)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of a failure; there is none where all went well


def _fill(folder: Path, corpus: Corpus, config: DataConfig) -> None:
    """Write the splits, their index, the tokenizer and meta.json."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading documents", total=None)
        plan, n_bytes = plan_splits(corpus, config)
        progress.update(task, description="training the tokenizer")
        train_texts = (text for doc in corpus.documents() for split, text in plan(doc.text) if split == "train")
        tokenizer = train_tokenizer(config.tokenizer, train_texts)
        progress.update(task, description="encoding", total=n_bytes)
        splits = SPLITS if config.test_fraction else SPLITS[:2]
        counts = _write(folder, splits, _parts(corpus, plan), tokenizer, lambda size: progress.advance(task, size))
    if empty := [split for split in splits if not counts[split]["tokens"]]:
        raise UserError(f"corpus {corpus.name!r} is too small to split: nothing is left for {' and '.join(empty)}.")
    tokenizer.save(folder / "tokenizer.json")
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    meta = {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "tokenizer": tokenizer.spec,
        "fingerprint": hashlib.sha256("\n".join(hashes[f"{split}.bin"] for split in splits).encode()).hexdigest(),
        "dtype": _dtype(tokenizer).name,
        "splits": counts,
        "sha256": hashes,
        "versions": {name: version(name) for name in ("datasets", "numpy", "rustbpe", "tiktoken")},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class _Part:
    name: str
    split: str
    text: str


def _parts(corpus: Corpus, plan: Plan) -> Iterator[list[_Part]]:
    """Yield the documents' parts, some at a time, so that memory stays constant and all cores encode."""
    chunk, size = [], 0
    for document in corpus.documents():
        for split, text in plan(document.text):
            if text:
                chunk.append(_Part(document.name, split, text))
                size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)


def _write(
    folder: Path,
    splits: tuple[str, ...],
    chunks: Iterator[list[_Part]],
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> dict[str, dict[str, int]]:
    """Write {split}.bin, and documents.jsonl with the place of each part; return the counts of each split."""
    dtype = _dtype(tokenizer)
    counts = {split: {"tokens": 0, "bytes": 0, "documents": 0} for split in splits}
    with ExitStack() as stack:
        bins = {split: stack.enter_context((folder / f"{split}.bin").open("wb")) for split in splits}
        index = stack.enter_context((folder / "documents.jsonl").open("w", encoding="utf-8"))
        for chunk in chunks:
            for part, ids in zip(chunk, tokenizer.encode_batch([part.text for part in chunk]), strict=True):
                bins[part.split].write(np.array([tokenizer.eot], dtype).tobytes() + ids.astype(dtype).tobytes())
                count, size = counts[part.split], {"tokens": len(ids) + 1, "bytes": len(utf8(part.text))}
                place = {"name": part.name, "split": part.split, "offset": count["tokens"], **size}
                index.write(json.dumps(place) + "\n")
                for key, amount in {**size, "documents": 1}.items():
                    count[key] += amount
                advance(size["bytes"])
    return counts
