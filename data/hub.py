"""Hugging Face data sets, by name or as a folder in the same layout. Rows are streamed: no file is stored."""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.documents import Corpus, Document, digest, reading, row_documents, table_rows
from files import sha256_of

WAYS_OUT = (
    "Ways out: correct the name (owner/name, or owner/name:config); --data.corpus=stdlib (needs no network) or a "
    "local .txt, .jsonl or .parquet file; or, where the Hub can be reached, `hf download owner/name "
    "--repo-type=dataset --local-dir=FOLDER`, and here --data.corpus=FOLDER, a copy of that folder."
)


def hub_corpus(name: str, column: str) -> Corpus:
    """Return the training split of a data set: `owner/name` or `folder`, both optionally with `:config`.

    A data set of the Hub is identified by its commit, a folder by the content of its training files.

    Raises:
        UserError: it cannot be found or read, now or while it is iterated. The message names the ways out.
    """
    import datasets  # late: the import takes 1.5 seconds

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path, _, config = name.partition(":")
    folder = Path(os.path.expanduser(path))
    remote = not folder.is_dir()

    def load() -> Any:
        return datasets.load_dataset_builder(path if remote else str(folder.resolve()), config or None)

    builder = None
    with reading(f"data set {name!r}", WAYS_OUT):
        try:
            builder = load()
            identity = [name, builder.hash] if remote else [sha256_of(Path(file)) for file in _train_files(builder)]
        except Exception:
            # Without the Hub, the commit that was seen last still finds what was prepared from it.
            commit = _last_commit(path) if remote else None
            if commit is None:
                raise
            identity = [name, commit]

    def documents() -> Iterator[Document]:
        with reading(f"data set {name!r}", WAYS_OUT):
            # Where the first attempt failed, this one raises the reason.
            opened = builder or load()
            files = [] if remote else _train_files(opened)
            if files and all(file.endswith((".jsonl", ".parquet")) for file in files):
                rows = itertools.chain.from_iterable(table_rows(file, column) for file in files)
            else:
                rows = opened.as_streaming_dataset(split="train")
            yield from row_documents(rows, column, name)

    return Corpus(name, digest([column, *identity]), documents, remote)


def _train_files(builder: Any) -> list[str]:
    return (builder.config.data_files or {}).get("train", [])


def _last_commit(path: str) -> str | None:
    """Return the commit of the data set's card in the Hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(path, "README.md", repo_type="dataset")
    return Path(card).parent.name if isinstance(card, str) else None
