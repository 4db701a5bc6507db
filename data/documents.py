"""Documents and corpora: what every kind of corpus gives, and the rows of a table as documents."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    """A sequence of documents that can be read several times and is never held in memory.

    Args:
        name: as the user gave it.
        fingerprint: SHA-256 of everything that decides the documents' text.
        documents: returns a new iterator over the documents, always in the same order.
        remote: each iterator reads from the network again.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[Document]]
    remote: bool = False


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 of the parts, in hex."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def reading(source: str, way_out: str = "Correct it, or choose another with --data.corpus.") -> Iterator[None]:
    """Turn whatever fails while a corpus is read into a `UserError` that names the source and the way out."""
    try:
        yield
    except UserError:
        raise
    # pyarrow, datasets and the libraries below them raise many types for a damaged file or a missing network.
    except Exception as fault:
        raise UserError(f"{source} cannot be read: {type(fault).__name__}: {fault}\n{way_out}") from fault


def row_documents(rows: Iterable[dict[str, Any]], column: str, source: str) -> Iterator[Document]:
    """Yield the text of each row as a document called source:row. A null is an empty text.

    Raises:
        UserError: the first row has no such column, or the column holds something else than text.
    """
    found = False
    for number, row in enumerate(rows):
        # In a .jsonl a later row may leave out the column.
        found = found or column in row
        if not found:
            raise UserError(f"corpus {source!r}: {unknown('column', column, row)} Set it with --data.column.")
        text = "" if row.get(column) is None else row[column]
        if not isinstance(text, str):
            raise UserError(f"corpus {source!r}: column {column!r} holds {type(text).__name__}, not text.")
        # JSON can hold one half of a character that UTF-16 writes in two. UTF-8 cannot, so U+FFFD stands for it.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield Document(f"{source}:{number}", text)


def table_rows(path: str, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl or .parquet file, holding only a few of them in memory.

    `datasets` could read both, but it holds a whole row group of a .parquet, which may be the whole file.
    """
    return _jsonl_rows(path) if path.endswith(".jsonl") else _parquet_rows(path, column)


def _parquet_rows(path: str, column: str) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile  # late: only a .parquet pays for the import

    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        # Without the column, all are read, so that the message can name them.
        columns = [column] if column in file.schema_arrow.names else None
        for batch in file.iter_batches(100, columns=columns):
            yield from batch.to_pylist()


def _jsonl_rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"corpus file {path!r}, line {number}: not a JSON object, but {line.strip()[:40]!r}.")
            yield row


def copy_documents(corpus: Corpus, path: Path) -> Corpus:
    """Read the documents once, write them into a file, and return the same corpus read from that file."""
    with path.open("w", encoding="utf-8") as file:
        for document in corpus.documents():
            file.write(json.dumps([document.name, document.text]) + "\n")

    def documents() -> Iterator[Document]:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield Document(*json.loads(line))

    return replace(corpus, documents=documents, remote=False)
