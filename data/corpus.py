"""A corpus's name -> its documents."""

import difflib
import glob
import os
import re
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data.config import DataConfig
from data.documents import Corpus, Document, digest, reading, row_documents, table_rows
from data.hub import hub_corpus
from data.plays import shakespeare
from data.webster import webster
from errors import UserError, unknown
from files import sha256_of

BUILT_IN = ("shakespeare", "webster", "stdlib")
SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
# Folders of the standard library that are no part of the corpus. `encodings` holds tables, not programs.
TESTS = {"test", "tests", "idle_test"}
NOT_SOURCE = TESTS | {"site-packages", "dist-packages", "__pycache__", "encodings"}


def open_corpus(config: DataConfig) -> Corpus:
    """Return the corpus that the config names. Nothing is downloaded yet, except the commit of a Hub data set.

    Raises:
        UserError: as `check_corpus`, or a Hugging Face data set cannot be found. While the documents are iterated: a
            file or a row cannot be read, or there is no such column.
    """
    files = check_corpus(config)
    if config.corpus == "shakespeare":
        return shakespeare()
    if config.corpus == "webster":
        return webster()
    with reading(f"corpus {config.corpus!r}"):
        if config.corpus == "stdlib":
            return _stdlib_corpus()
        if files:
            return _file_corpus(config, files)
    return hub_corpus(config.corpus, config.column)


def check_corpus(config: DataConfig) -> list[Path]:
    """Check the name of a corpus without reading or downloading any text. Returns the files of a path or glob.

    Raises:
        UserError: an unknown name, a missing file, an empty glob, a folder of text, an unknown suffix, no permission.
    """
    name = config.corpus
    path = Path(os.path.expanduser(name))
    with reading(f"corpus {name!r}"):
        # A file may have a name with brackets, which in a glob would stand for something else.
        found = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = [file for file in found if file.is_file()]
        problem = "" if name in BUILT_IN else _find_problem(name, path, files)
    if problem:
        raise UserError(f"corpus {name!r}: {problem}")
    return [] if name in BUILT_IN else files


def is_hub_name(name: str) -> bool:
    """Return whether a corpus's name stands for a data set of the Hugging Face Hub, not for files here."""
    here = Path(os.path.expanduser(name.partition(":")[0]))
    return bool(HUB_NAME.fullmatch(name)) and here.suffix not in SUFFIXES and not here.exists()


def _find_problem(name: str, path: Path, files: list[Path]) -> str:
    """Return what is wrong with a name and what to do, or an empty string."""
    # A folder in the Hub's layout may be followed by the name of a config, as a data set of the Hub.
    folder = Path(os.path.expanduser(name.partition(":")[0]))
    if folder.is_dir():
        inside = (file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth))
        if any({".jsonl", ".parquet"} & set(file.suffixes) for file in inside):
            return ""
        way_out = f"Give its files as a glob, such as {str(folder / '*.txt')!r}."
        return f"it is a folder without .jsonl or .parquet. {way_out}"
    for file in files:
        if file.suffix not in SUFFIXES:
            return f"file {str(file)!r}: {unknown('suffix', file.suffix, SUFFIXES)}"
    if files:
        return ""
    if glob.has_magic(name):
        return "no file matches this glob."
    if path.suffix in SUFFIXES or path.is_absolute() or name.startswith("."):
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f" Did you mean {str(path.with_name(nearest[0]))!r}?" if nearest else ""
        return f"no such file.{hint}"
    if HUB_NAME.fullmatch(name):
        return ""
    others = "Or give a path or glob of .txt, .jsonl or .parquet, or a Hugging Face name (owner/name)."
    return f"{unknown('name', name, BUILT_IN)} {others}"


def _stdlib_corpus() -> Corpus:
    """Return the source files of Python's own library as documents."""
    root = Path(sysconfig.get_path("stdlib"))
    sources: list[Path] = []
    for folder, inner, names in os.walk(root):
        # os.walk reads this list again to decide where it goes next.
        inner[:] = [name for name in inner if name not in NOT_SOURCE]
        sources += [Path(folder, name) for name in names if name.endswith(".py")]
    sources.sort()
    named = {path.relative_to(root).as_posix(): path for path in sources}
    return Corpus("stdlib", digest(map(sha256_of, sources)), partial(_documents, named, ""))


def _file_corpus(config: DataConfig, files: list[Path]) -> Corpus:
    """Return files as a corpus: one document a .txt, one a row of a table."""
    kinds = [file.suffix + sha256_of(file) for file in files]
    # Text has no columns, so a change of data.column leaves the fingerprint of .txt files as it is.
    column = [] if all(file.suffix == ".txt" for file in files) else [config.column]
    named = {str(file): file for file in files}
    return Corpus(config.corpus, digest(column + kinds), partial(_documents, named, config.column))


def _documents(files: dict[str, Path], column: str) -> Iterator[Document]:
    for name, file in files.items():
        with reading(f"corpus file {str(file)!r}"):
            if file.suffix in (".jsonl", ".parquet"):
                yield from row_documents(table_rows(name, column), column, name)
            else:
                # As bytes, since reading as text would change the ends of lines.
                yield Document(name, file.read_bytes().decode("utf-8-sig", "replace"))
