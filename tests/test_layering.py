"""The arrows between rooms: doors -> study -> training -> {model, data}, and never another way; no circle of files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"errors", "files", "data", "model", "training", "training.probes"}
# What the files of a room may import beside their own room. A room inside a room is named with a dot.
ROOMS = {
    "errors": set(),
    "files": {"errors"},
    "data": {"errors", "files"},
    "model": {"errors", "files"},
    "training.probes": {"errors", "files", "data", "model", "training"},
    "training": {"errors", "files", "data", "model", "training.probes"},
    "study.plan": BASE,
    "study.run": {*BASE, "study.plan"},
    "study.judge": {*BASE, "study.plan", "study.run"},
    "study.report": {*BASE, "study.plan", "study.run", "study.judge"},
    "study": {*BASE, "study.plan", "study.run", "study.judge", "study.report"},
    "train": {*BASE, "study", "study.plan"},
    "eval": {*BASE, "study", "study.plan", "study.run", "study.judge", "study.report"},
    "sample": BASE,
}
TOPS = {room.partition(".")[0] for room in ROOMS}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path
    for top in sorted(TOPS)
    for path in ((ROOT / top).glob("**/*.py") if (ROOT / top).is_dir() else [ROOT / f"{top}.py"])
}


def room_of(module: str) -> str:
    """The innermost room that a module is in."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def imports(source: str, known: set[str]) -> set[str]:
    """The modules among `known` (or whole, where nothing of it is known) that a source imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("<relative>")
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from training import checkpoint` imports a module, `from training.loop import train` a name.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or {node.module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first circle of a graph, from a node back to itself; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


GRAPH = {module: imports(path.read_text(encoding="utf-8"), set(MODULES)) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_only_from_its_own_room_and_those_below(module):
    inside = {name for name in GRAPH[module] if name.partition(".")[0] in {*TOPS, "<relative>", "tests", "benchmarks"}}
    room = room_of(module)
    assert {room_of(name) if name in MODULES else name for name in inside} <= ROOMS[room] | {room}


def test_no_file_imports_itself_through_others():
    assert circle({module: found & set(MODULES) for module, found in GRAPH.items()}) == []


def test_the_instrument_sees_an_import_wherever_it_stands_and_a_circle_of_three():
    source = "import a.b\ndef f():\n    from c.d import e\n    from g import h\n    if True:\n        from . import i"
    assert imports(source, {"g.h"}) == {"a.b", "c.d", "g.h", "<relative>"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
