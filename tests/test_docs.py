import os
import re
import subprocess
import sys
from pathlib import Path

from model.export import HIDDEN_ACT, architecture, refusals

ROOT = Path(__file__).parent.parent


def test_the_python_of_the_docs_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    env = os.environ | {"PYTHONPATH": str(ROOT), "ACTGPT_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "disabled"}
    said = []
    for i, block in enumerate(blocks):
        (tmp_path / f"block{i}.py").write_text(block)
        done = subprocess.run([sys.executable, f"block{i}.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert (tmp_path / "runs" / "notebook" / "summary.json").exists()
    assert (tmp_path / "runs" / "notebook-study" / "report.html").exists()
    finished = {tuple(line.split()[:2]) for line in said[1].splitlines()[-4:]}
    assert finished == {("relu", "0"), ("relu", "1"), ("gelu", "0"), ("gelu", "1")}


def test_the_example_of_a_verdict_prints_what_the_page_says():
    page = (ROOT / "docs" / "verdicts.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"It prints `{done.stdout.strip()}`" in page


def test_every_file_that_readme_and_docs_link_to_is_there():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == []
    assert set(re.findall(r"configs/[\w.-]+\.toml", (ROOT / "README.md").read_text())) <= {
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")
    }


def test_the_table_of_exports_is_what_the_code_says():
    rows = re.findall(
        r"^\| (`\w+` \| `\w+ForCausalLM` .*) \|$", (ROOT / "docs" / "export.md").read_text(), re.MULTILINE
    )
    table = [tuple(cell.strip("`") for cell in row.split(" | ")) for row in rows]
    expected = []
    for name, hidden_act in HIDDEN_ACT.items():
        verdicts = ("refuses" if reason else "same" for reason in refusals(name, "gpt2").values())
        expected.append((name, architecture(name), hidden_act, *verdicts))
    assert table == expected
