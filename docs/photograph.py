"""Photograph a part of a report: the pictures of README and docs are made so.

python docs/photograph.py runs/quick/report.html docs/report.png --select '#loss' --width 1040 --theme light

It needs Chromium and the extra `test`. The picture has two pixels for one of the page.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from playwright.sync_api import sync_playwright
from tyro.conf import Positional, arg

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Command:
    """Photograph a part of a report."""

    page: Annotated[Positional[Path], arg(help="report.html or verdict.html")]
    picture: Annotated[Positional[Path], arg(help="PNG file to write")]
    select: Annotated[str, arg(help="CSS selector of the part, such as '#loss' for a section; body: the page")] = "body"
    width: Annotated[int, arg(help="width of the window, pixels of the page")] = 1040
    theme: Annotated[Literal["light", "dark"], arg(help="theme of the page")] = "light"


def photograph(page: Path, picture: Path, select: str, width: int, theme: Literal["light", "dark"]) -> None:
    """Write a picture of the part of a page that a CSS selector names."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit(f"no browser found; install one of: {', '.join(BROWSERS)}")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=theme, device_scale_factor=2)
        window.goto(page.resolve().as_uri())
        window.evaluate("ready")  # resolves once every figure is drawn
        # The toolbar follows the reader down the page and would cover the part.
        window.add_style_tag(content=".toolbar { position: static !important; }")
        window.locator(select).screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    photograph(**vars(tyro.cli(Command, prog="python docs/photograph.py", description=__doc__)))
