"""Corpus -> token files, made once: keyed by content, written beside and renamed, checked on every use."""

import hashlib
import json
import os
import shutil
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.progress import Progress

from data.assets import cache_faults, cache_folder, console, sha256_of
from data.config import DataConfig
from data.corpus import open_corpus
from data.documents import Corpus, copied
from data.encode import Split, dtype_of, open_split, write_splits
from data.limit import limit_tokens
from data.splits import SPLITS, plan_splits
from data.tokenizer import Tokenizer, train_tokenizer
from errors import UserError

FORMAT = 2  # part of the key: raise it when the same corpus and config would give other files


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
    # the corpus counts by its content, which knows its column, not by its name
    recipe = [FORMAT, *astuple(replace(config, corpus=corpus.fingerprint, column=DataConfig.column))]
    folder = cache_folder() / "datasets" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    with cache_faults():
        if not _is_whole(folder):
            with FileLock(f"{folder}.lock"):
                if not _is_whole(folder):
                    _make(folder, corpus, config)
        return _open(folder)


def _is_whole(folder: Path) -> bool:
    """Return whether the files are those that meta.json lists, and meta.json the one that was written with them."""
    try:
        if sha256_of(folder / "meta.json") != (folder / "meta.sha256").read_text():
            return False
        return all(sha256_of(folder / name) == digest for name, digest in _meta(folder)["sha256"].items())
    except (OSError, ValueError):
        return False


def _meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def _open(folder: Path) -> Dataset:
    meta = _meta(folder)
    splits = {
        name: open_split(folder / f"{name}.bin", meta["dtype"], counts) for name, counts in meta["splits"].items()
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
    """Write the splits, their index, the tokenizer, meta.json and its hash."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading documents", total=None)
        corpus = limit_tokens(corpus, config)
        copy = folder / "copy.jsonl"
        if corpus.remote:  # it is read up to three times
            corpus = copied(corpus, copy)
        plan, n_bytes = plan_splits(corpus, config)
        progress.update(task, description="training the tokenizer")
        train_texts = (text for doc in corpus.documents() for split, text in plan(doc.text) if split == "train")
        tokenizer = train_tokenizer(config.tokenizer, train_texts)
        progress.update(task, description="encoding", total=n_bytes)
        splits = SPLITS if config.test_fraction else SPLITS[:2]
        counts = write_splits(folder, splits, corpus, plan, tokenizer, lambda size: progress.advance(task, size))
    copy.unlink(missing_ok=True)
    if empty := [split for split in splits if not counts[split]["tokens"]]:
        limited = f" under data.max_tokens = {config.max_tokens}" if config.max_tokens else ""
        left = f"nothing is left for {' and '.join(empty)}"
        raise UserError(f"corpus {corpus.name!r}{limited} is too small to split: {left}.")
    tokenizer.save(folder / "tokenizer.json")
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    meta = {
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "tokenizer": tokenizer.spec,
        "fingerprint": hashlib.sha256("\n".join(hashes[f"{split}.bin"] for split in splits).encode()).hexdigest(),
        "dtype": dtype_of(tokenizer).name,
        "splits": counts,
        "sha256": hashes,
        "versions": {name: version(name) for name in ("datasets", "numpy", "rustbpe", "tiktoken")},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    (folder / "meta.sha256").write_text(sha256_of(folder / "meta.json"))
