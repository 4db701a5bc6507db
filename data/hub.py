"""Hugging Face data sets, by name or as a folder in the same layout: rows are streamed, never all held or kept."""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from data.assets import sha256_of
from data.documents import Corpus, Document, digest, row_names, row_texts, table_rows
from errors import UserError


def hub_corpus(name: str, column: str) -> Corpus:
    """Return the training split of a data set: `owner/name` or `folder`, either with `:config`.

    On the Hub its identity is the commit, which is asked for here; of a folder, the content of its files. Where the Hub
    cannot be reached, the commit that was seen last still names what was prepared from it.

    Raises:
        UserError: it cannot be had; while iterating: the same, or there is no such column; it names the ways out.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path, _, config = name.partition(":")
    folder = Path(os.path.expanduser(path))
    remote = not folder.is_dir()
    try:
        builder = datasets.load_dataset_builder(path if remote else str(folder.resolve()), config or None)
        files = [] if remote else (builder.config.data_files or {}).get("train", [])
        identity = [name, str(builder.hash)] if remote else [sha256_of(Path(file)) for file in files]
    except Exception as fault:  # network, names, access, formats: each library below raises its own
        error = _unavailable(name, fault)
        commit = _last_commit(path) if remote else None
        if commit is None:
            raise error from fault

        def refuse() -> Iterator[Document]:
            raise error

        return Corpus(name, digest([column, name, commit]), refuse, remote)

    def documents() -> Iterator[Document]:
        try:
            if files and all(file.endswith((".jsonl", ".parquet")) for file in files):
                rows = itertools.chain.from_iterable(table_rows(file, column) for file in files)
            else:
                rows = builder.as_streaming_dataset(split="train")
            yield from map(Document, row_names(name), row_texts(rows, column, name))
        except UserError:
            raise
        except Exception as fault:
            raise _unavailable(name, fault) from fault

    return Corpus(name, digest([column, *identity]), documents, remote)


def _last_commit(path: str) -> str | None:
    """Return the commit at which the data set's card lies in the Hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(path, "README.md", repo_type="dataset")
    return Path(card).parent.name if isinstance(card, str) else None


def _unavailable(name: str, fault: Exception) -> UserError:
    return UserError(
        f"data set {name!r} cannot be had: {type(fault).__name__}: {fault}\n"
        "Ways out: correct the name (owner/name, or owner/name:config); --data.corpus=stdlib (needs no network) or a "
        "local .txt, .jsonl or .parquet file; or, where the Hub can be reached, `hf download owner/name "
        "--repo-type=dataset --local-dir=FOLDER`, and here --data.corpus=FOLDER, a copy of that folder."
    )
