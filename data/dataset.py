"""Corpus -> token files in the cache: keyed by content, written whole, checked on every use."""

import hashlib
import json
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import Progress

from data.assets import console, make_once, open_cache
from data.config import DataConfig
from data.corpus import open_corpus
from data.documents import Corpus, copy_documents
from data.encode import Split, open_split, write_splits
from data.limit import limit_tokens
from data.splits import SPLITS, plan_splits
from data.tokenizer import Tokenizer, train_tokenizer
from errors import Damaged
from files import check_sha256, own_file, sha256_of, write_folder

FORMAT = 3  # part of the key: to be raised when the same corpus and config would give other files


@dataclass(frozen=True)
class Dataset:
    """The splits and their tokenizer. `fingerprint` is equal for equal tokens, on any machine."""

    train: Split
    val: Split
    test: Split | None
    tokenizer: Tokenizer
    fingerprint: str
    folder: Path


def prepare(config: DataConfig, seed: int = 0) -> Dataset:
    """Return the tokens of a config, from the cache where they are there. Several processes may call it at once.

    `seed` is the run's, which decides the split where `split_seed` is -1.

    Raises:
        UserError: the corpus or the tokenizer cannot be had, the corpus is too small, or the cache cannot be used.
    """
    config = config.of_run(seed)
    corpus = open_corpus(config)
    # The corpus is part of the key by its content, which covers the column, and not by its name.
    recipe = [FORMAT, *astuple(replace(config, corpus=corpus.fingerprint, column=DataConfig.column))]
    # 64 bits of the hash tell all data sets of a user apart, and keep paths short.
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    with open_cache() as cache:
        folder = cache / "datasets" / key
        make_once(folder, _is_intact, lambda path: _make(path, corpus, config))
        return _open(folder)


def _is_intact(folder: Path) -> bool:
    """Return whether all files match the hashes in meta.json, meta.json that in meta.sha256, and they can be used."""
    with suppress(Damaged), own_file(folder):
        check_sha256(folder / "meta.json", (folder / "meta.sha256").read_text(), "meta.sha256")
        for name, digest in _read_meta(folder)["sha256"].items():
            check_sha256(folder / name, digest, "meta.json")
        _open(folder)
        return True
    return False


def _read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def _open(folder: Path) -> Dataset:
    meta, tokenizer = _read_meta(folder), Tokenizer.load(folder / "tokenizer.json")
    splits = {}
    for name, counts in meta["splits"].items():
        splits[name] = open_split(folder / f"{name}.bin", counts, tokenizer.n_vocab)
    return Dataset(splits["train"], splits["val"], splits.get("test"), tokenizer, meta["fingerprint"], folder)


def _make(folder: Path, corpus: Corpus, config: DataConfig) -> None:
    """Write a folder with the splits, the index of documents, the tokenizer, meta.json and its hash."""
    if folder.exists():
        console.print(f"warning: {folder} is damaged: making it again")
    with write_folder(folder) as temporary:
        splits = SPLITS if config.test_fraction else SPLITS[:2]
        tokenizer, counts = _encode(temporary, splits, corpus, config)
        tokenizer.save(temporary / "tokenizer.json")
        hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        tokens = "\n".join(hashes[f"{split}.bin"] for split in splits)
        meta = {
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "tokenizer": tokenizer.spec,
            "fingerprint": hashlib.sha256(tokens.encode()).hexdigest(),
            "splits": counts,
            "sha256": hashes,
            "versions": {name: version(name) for name in ("datasets", "numpy", "rustbpe", "tiktoken")},
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        (temporary / "meta.sha256").write_text(sha256_of(temporary / "meta.json"))


def _encode(
    folder: Path, splits: tuple[str, ...], corpus: Corpus, config: DataConfig
) -> tuple[Tokenizer, dict[str, dict[str, int]]]:
    """Limit and split the corpus, train its tokenizer, and write the splits. Return the tokenizer and the counts."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading documents", total=None)
        corpus = limit_tokens(corpus, config)
        copy = folder / "copy.jsonl"
        if corpus.remote:
            # The documents are read three times below. The network sends them once.
            corpus = copy_documents(corpus, copy)
        plan, n_bytes = plan_splits(corpus, config)
        progress.update(task, description="training the tokenizer")
        parts = (part for document in corpus.documents() for part in plan(document.text))
        tokenizer = train_tokenizer(config.tokenizer, (text for split, text in parts if split == "train"))
        progress.update(task, description="encoding", total=n_bytes)
        counts = write_splits(folder, splits, corpus, plan, tokenizer, lambda size: progress.advance(task, size))
    copy.unlink(missing_ok=True)
    return tokenizer, counts
