"""The arrows between rooms: doors -> study -> training -> {model, data}, and never another way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "data": {"errors", "files"},
    "model": {"errors", "files"},
    "training": {"errors", "files", "data", "model"},
    "study": {"errors", "files", "data", "model", "training"},
    "train": {"errors", "files", "data", "model", "training", "study"},
    "eval": {"errors", "files", "data", "model", "training", "study"},
    "sample": {"errors", "files", "data", "model", "training"},
    "files": {"errors"},
    "errors": set(),
}


def files():
    for name in ROOMS:
        yield from (ROOT / name).glob("**/*.py") if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]


def imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("<relative>" if node.level else (node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", list(files()), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_imports_only_from_its_own_room_and_those_below(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    inside = imports(path.read_text(encoding="utf-8")) & (set(ROOMS) | {"<relative>", "tests", "benchmarks"})
    assert inside <= ROOMS[room] | {room}


def test_the_instrument_sees_an_import_wherever_it_stands():
    source = "import a.b\ndef f():\n    from c.d import e\n    if True:\n        from . import g"
    assert imports(source) == {"a", "c", "<relative>"}
