"""The notebook runs from top to bottom, in a kernel of its own, and leaves nothing in the repository."""

import html
import os
import re

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient


@pytest.mark.timeout(1200)
def test_the_notebook_trains_shows_the_page_and_samples(wheels, tmp_path, monkeypatch):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # Jupyter warns of its other way to choose folders
    path = ROOT / "docs" / "compare.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what a reader runs is what is tested
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}, startup_timeout=300
    ).execute()

    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    assert outputs["install"] == []
    (shown,) = (output["data"]["text/html"] for output in outputs["page"])
    inside = re.search(r'<iframe srcdoc="(.*?)" width', shown, re.DOTALL)
    assert inside
    page = html.unescape(inside[1])
    assert page == (tmp_path / "runs" / "notebook" / "report.html").read_text(encoding="utf-8")
    text = "".join(output["text"] for output in outputs["text"])
    for activation in ("sigmoid", "gelu"):
        assert activation in page
        assert re.search(rf"^--- {activation}, step \d+\nROMEO:(?s:.){{40}}", text, re.MULTILINE)
