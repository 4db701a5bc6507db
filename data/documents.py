"""Documents and corpora: what every kind of corpus comes to, and the rows of a table as documents."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errors import UserError, unknown


@dataclass(frozen=True)
class Document:
    """One text and where it comes from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents by name. `fingerprint`: SHA-256 of what they come from; `documents()`: a fresh iterator.

    `remote`: each iterator fetches the text anew, over the network.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[Document]]
    remote: bool = False


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 of the parts, in hex."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def row_texts(rows: Iterable[Any], column: str, source: str) -> Iterator[str]:
    """Yield the text of each row, an empty one for null. Raises UserError: no such column, or one of another type."""
    for row in rows:
        if column not in row:
            raise UserError(f"corpus {source!r}: {unknown('column', column, row)} Set it with --data.column.")
        text = row[column]
        if not isinstance(text, str | None):
            raise UserError(f"corpus {source!r}: column {column!r} holds {type(text).__name__}, not text.")
        yield text or ""


def row_names(source: str) -> Iterator[str]:
    """Yield a name for each row of a table, such as source:0."""
    return (f"{source}:{row}" for row in itertools.count())


def table_rows(path: str, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl or .parquet file, few held at a time: of a .parquet that has the column, only that.

    In a .jsonl a row may leave out the column if one before it had it. `datasets` would hold a whole row group of a
    .parquet, which may be the whole file, and at a .jsonl that begins with `null` it ends the process.

    Raises:
        ValueError, OSError: it is damaged.
    """
    return _jsonl_rows(path, column) if path.endswith(".jsonl") else _parquet_rows(path, column)


def _parquet_rows(path: str, column: str) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        columns = [column] if column in file.schema_arrow.names else None
        for batch in file.iter_batches(100, columns=columns):
            yield from batch.to_pylist()


def _jsonl_rows(path: str, column: str) -> Iterator[dict[str, Any]]:
    default: dict[str, None] = {}
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{type(row).__name__} where an object is expected")
            except (ValueError, RecursionError) as fault:
                raise ValueError(f"line {number}: {fault}") from fault
            default = {column: None} if column in row else default
            yield default | row


def copied(corpus: Corpus, path: Path) -> Corpus:
    """Return the corpus with its documents read once, into a file, and given from there."""
    with path.open("w", encoding="utf-8") as file:
        for document in corpus.documents():
            file.write(json.dumps([document.name, document.text]) + "\n")

    def documents() -> Iterator[Document]:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield Document(*json.loads(line))

    return replace(corpus, documents=documents, remote=False)
