"""How a page is written: one HTML file, which opens from a disk and asks nothing of the network.

A page is a list of sections, each of a kind that the template knows how to lay out. study_page.py and claims_page.py
make the sections.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from files import replacing
from study.report.drawing import FEW, PALETTE, Style
from study.report.sentences import sentence


@dataclass(frozen=True)
class Section:
    """A part of the page; the template lays out each kind: figure, heat, table, claim, samples, settings, text.

    `text` stands above the content, `reading` folded below it.
    """

    id: str
    title: str
    kind: str
    content: Any
    text: str = ""
    reading: str = ""


def write_page(
    path: Path, title: str, finding: str, scope: str, parts: Sequence[Section], legend: dict[str, Style]
) -> Path:
    """Write a page of sections and return its path. `legend` holds the arms that a reader can show and hide."""
    # Late imports, so that a folder without runs is refused at once.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file, such as {path / 'report.html'}.")
    engine = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # StrictUndefined and autoescape: a misspelt name in the template is an error, and a run's name is never HTML.
    engine.policies["json.dumps_kwargs"] = {"sort_keys": False}  # figures keep the order of their arms
    engine.filters["value"] = value_text
    engine.filters["typeset"] = _typeset
    page = engine.get_template("page.html.j2").render(
        title=title,
        finding=sentence(finding),
        scope=sentence(scope),
        sections=parts,
        figures={part.id: part.content for part in parts if part.kind in ("figure", "heat")},
        styles=legend,
        few=len(legend) <= FEW,
        palette=PALETTE,
        plotly=Markup(get_plotlyjs()),
    )
    # The folder of a report on several studies is new.
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader who has the page open never loads half of it.
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def value_text(value: Any) -> str:
    """Write a setting: thousands separated, floats short, booleans as in TOML, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _typeset(text: str) -> str:
    """Give numbers a minus sign, and keep an effect and its margin on one line."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text).replace(" ± ", "\u00a0±\u00a0")
