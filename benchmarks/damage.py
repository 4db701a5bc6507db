"""Changes to every file of a run, and what the doors make of them.

    python benchmarks/damage.py --changes 500

A change is damage (a bit, a cut, a deletion), or a file that is whole but foreign, under hashes that match. Foreign
files have other types, shapes and keys, huge numbers or empty arrays. Each is made to a fresh copy of a run, in a
process that may crash. A finished run is then reported and trained again. A stopped run is sampled from and resumed.
What counts:

    refused     exit code 2, and a message that names the file
    mended      the true results, from the checkpoint before or from the copy in the last one, with a warning
    no effect   the true results: the change was in nothing that the doors read
    wrong       other results, silently
    traceback   an exception that no door expects
    crash       the process has ended
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import eval as eval_door
import sample as sample_door
import train as train_door
from errors import door
from files import sha256_of
from training.contents import seal

OUTCOMES = ("refused", "mended", "no effect", "wrong", "traceback", "crash")
NEWEST = "checkpoints/step-00000016"
IN_CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "metrics.jsonl")
FINISHED = ("config.toml", "metrics.jsonl", "summary.json", "val_windows.npy")
# The files that are changed: of a finished run, and of one that was stopped after its checkpoint of step 16.
PLACES = [("finished", name) for name in FINISHED]
PLACES += [("stopped", f"{NEWEST}/{name}") for name in (*IN_CHECKPOINT, "val_windows.npy", "manifest.json")]
PLACES += [("stopped", "config.toml"), ("stopped", "metrics.jsonl")]
MENDED = ("Using step-", "it is restored from", "It is made from")  # in the warnings
TIMES = ("time", "perf/tokens_per_s", "perf/mfu")
CONFIG = {
    "data": {"tokenizer": "bpe:270"},
    "model": {"activation": "swiglu", "n_layer": 1, "n_head": 2, "d_model": 16, "context": 16},
    "train": {"tokens": 1280, "batch_size": 4, "checkpoint_every": 8, "eval_every": 10, "log_every": 4, "keep": 3}
    | {"threads": 1, "precision": "fp32", "device": "cpu", "lr": 0.01},
    "wandb": {"mode": "disabled"},
}
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
VALUES = [None, True, "", "text", -1, 0, 1.5, 2**63, 10**400, 1e308, [], {}, [[]], {"a": 1}, DEEP]


# A run and its true results


def make_runs(home: Path) -> None:
    """Train the run whose copies are changed: `finished`, and `stopped` after the checkpoint of step 16."""
    os.environ |= {"ACTGPT_CACHE": str(home / "cache"), "WANDB_MODE": "disabled"}
    draw = random.Random(0)
    corpus = home / "corpus.txt"
    corpus.write_text(" ".join(draw.choices(["the", "king", "and", "queen", "of", "night"], k=3000)))
    (home / "it.toml").write_text(tomli_w.dumps(CONFIG | {"data": CONFIG["data"] | {"corpus": str(corpus)}}))
    code, said = call(train_door, home / "it.toml", f"--out={home / 'finished' / 'run'}")
    assert code == 0, said
    shutil.copytree(home / "finished", home / "stopped")
    for name in ("summary.json", "val_windows.npy"):
        (home / "stopped" / "run" / name).unlink()
    shutil.rmtree(home / "stopped" / "run" / "checkpoints" / "step-00000020")
    truth = {"cells": report(home / "finished")[2], "results": results(home / "finished" / "run")}
    for step in (16, 8):
        shutil.copytree(home / "stopped", home / "older")
        if step == 8:
            shutil.rmtree(home / "older" / "run" / NEWEST)
        truth[f"text {step}"] = text_of(home / "older" / "run")[1]
        shutil.rmtree(home / "older")
    (home / "truth.json").write_text(json.dumps(truth))


def call(module: Any, *arguments: object) -> tuple[int, str]:
    """Call a door in this process; return its exit code and all that it printed."""
    said = io.StringIO()
    sys.argv = [module.__name__, *map(str, arguments)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = door(module.main)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, said.getvalue()


def report(study: Path) -> tuple[int, str, dict[str, str]]:
    """Report the run in a folder; return the exit code, what was printed, and the row of the run in results.csv."""
    code, said = call(eval_door, study, f"--out={study / 'report.html'}")
    cells = {}
    if code == 0:
        with (study / "results.csv").open(newline="", encoding="utf-8") as file:
            cells = next(csv.DictReader(file))
    return code, said, {key: value for key, value in cells.items() if key not in ("study", "run")}


def text_of(run: Path) -> tuple[int, str]:
    """Sample from a run; return the exit code and what was printed."""
    return call(sample_door, run, "--tokens=40", "--device=cpu")


def results(run: Path) -> dict[str, Any]:
    """Return what a run has found out, without its times: its records and the hash of its last weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = run / "checkpoints" / "step-00000020" / "model.safetensors"
    records = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return {"records": records, "weights": sha256_of(weights)}


# The changes


def damage(path: Path, draw: random.Random) -> str:
    """Change a bit, cut the file short, or delete it."""
    kind = draw.choice(["bit", "bit", "cut", "delete"])
    content = bytearray(path.read_bytes())
    if kind == "delete" or not content:
        path.unlink()
        return "delete"
    at = draw.randrange(len(content))
    if kind == "bit":
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content if kind == "bit" else content[:at])
    return f"{kind} at {at}"


def foreign(path: Path, draw: random.Random) -> str:
    """Write a whole file that no run wrote."""
    if path.suffix == ".npy":
        return foreign_array(path, draw)
    if path.suffix == ".safetensors":
        return foreign_tensors(path, draw)
    text = path.read_text()
    if path.suffix == ".jsonl":
        lines = text.splitlines(keepends=True)
        at, kind = draw.randrange(len(lines)), draw.choice(["double", "swap", "garble", "value", "value"])
        if kind == "value":
            record, said = foreign_tree(json.loads(lines[at]), draw)
            lines[at] = json.dumps(record) + "\n"
            kind = said
        else:
            lines[at] = {"double": lines[at] * 2, "swap": lines[-1] + lines[at], "garble": "x" + lines[at]}[kind]
        path.write_text("".join(lines))
        return f"line {at}: {kind}"
    tree, said = foreign_tree(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text), draw)
    path.write_text(to_toml(tree) if path.suffix == ".toml" else json.dumps(tree))
    return said


def to_toml(tree: Any) -> str:
    """Return TOML; of what TOML cannot hold, the text."""
    try:
        return tomli_w.dumps(tree)
    except (TypeError, AttributeError, ValueError, RecursionError):
        return str(tree)


def foreign_tree(tree: Any, draw: random.Random) -> tuple[Any, str]:
    """Return a tree of dicts and lists with one other value, key or type, and what was changed."""
    kind = draw.choice(["value", "value", "value", "drop", "add", "whole"])
    if kind == "whole":
        value = draw.choice(VALUES)
        return value, f"whole = {str(value)[:20]}"
    parts = [tree]  # every dict and list that is not empty
    for part in parts:
        inner = part.values() if isinstance(part, dict) else part
        parts += [value for value in inner if isinstance(value, dict | list) and value]
    part = draw.choice(parts)
    key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
    if kind == "drop":
        del part[key]
    elif kind == "add" and isinstance(part, dict):
        part[draw.choice(["mine", "=1", "a\x1b[2Jb"])] = draw.choice(VALUES)
    else:
        # A number of the right type under honest hashes cannot be told from a true one.
        part[key] = draw.choice([value for value in VALUES if not same_kind(value, part[key])])
    return tree, f"{kind} {key} = {str(part[key])[:20] if kind == 'value' else ''}"


def same_kind(one: Any, other: Any) -> bool:
    """Whether two values are both texts, or both numbers that a file of a run may hold."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)]
    return (all(numbers) and abs(one) < 2**63) or (isinstance(one, str) and isinstance(other, str))


def foreign_array(path: Path, draw: random.Random) -> str:
    """Write an array of another type or shape."""
    windows = np.load(path)
    arrays = {
        "int": windows.astype(int),
        "complex": windows.astype(complex),
        "text": windows.astype(str),
        "table": windows[None],
        "number": windows[:1].sum(),
        "nan": np.full_like(windows, np.nan),
        "empty table": np.empty((0, 3), np.float32),
        "objects": np.array([{}] * 3),
    }
    kind = draw.choice(list(arrays))
    np.save(path, arrays[kind], allow_pickle=True)
    return kind


def foreign_tensors(path: Path, draw: random.Random) -> str:
    """Write tensors of which one is missing, added, or of another shape or type."""
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    changed = {
        "scalar": tensor.new_zeros(()),
        "empty": tensor.new_zeros(0),
        "longer": torch.cat((tensor.flatten(), tensor.flatten())),
        "another dimension": tensor[None],
        "another type": tensor.double() if tensor.dtype != torch.float64 else tensor.float(),
        "int": tensor.to(torch.int32),
        "half": tensor.to(torch.float16),
    }
    kind = draw.choice([*changed, "drop", "add"])
    if kind == "drop":
        del tensors[name]
    elif kind == "add":
        tensors[f"{name}/mine"] = tensor.clone()
    else:
        tensors[name] = changed[kind]
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return f"{kind} {name}"


def match_hashes(run: Path, name: str) -> None:
    """Make the hashes of a foreign file match, where there are any."""
    folder = (run / name).parent
    if folder != run and not name.endswith("manifest.json"):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest[Path(name).name] = sha256_of(run / name)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if (run / "summary.json").exists():
        with contextlib.suppress(AttributeError, ValueError, TypeError):  # it is foreign itself, and no dict any more
            summary = json.loads((run / "summary.json").read_text())
            (run / "summary.json").write_text(json.dumps(seal(summary, run)))


# What follows


def try_change(home: Path, number: int) -> tuple[str, str, str]:
    """Make one change to a copy of a run; return the file, the change, and what came of it."""
    draw = random.Random(number)
    kind, name = PLACES[number % len(PLACES)]
    study = home / f"change-{number}"
    shutil.copytree(home / kind, study)
    run = study / "run"
    if number // len(PLACES) % 2:
        change = "damage: " + damage(run / name, draw)
    else:
        change = "foreign: " + foreign(run / name, draw)
        match_hashes(run, name)
    truth = json.loads((home / "truth.json").read_text())
    follow = follow_finished if kind == "finished" else follow_stopped
    try:
        outcomes = follow(study, Path(name).name, truth)
    except Exception as fault:
        outcomes = [f"traceback {type(fault).__name__}: {fault}"]
    shutil.rmtree(study)
    # The last door decides, unless one of them was wrong.
    bad = [outcome for outcome in outcomes if outcome.startswith(("wrong", "traceback"))]
    return title(kind, name), change, (bad or outcomes)[-1]


def title(kind: str, name: str) -> str:
    """Return the name of a file in the table."""
    return f"{kind}: {name.replace('checkpoints/step-00000016', 'checkpoint')}"


def follow_finished(study: Path, name: str, truth: dict[str, Any]) -> list[str]:
    """Report a finished run whose file was changed, and train it again."""
    code, said, cells = report(study)
    true = truth["cells"]
    # A figure that is not there any more is shown as none; so are all of a run without a summary.
    shown = {key: cells.get(key) or true[key] for key in true if key != "status"}
    right = shown == {key: value for key, value in true.items() if key != "status"}
    outcome = refusal(code, said, name) if code else "no effect" if right else f"wrong: the report says {cells}"
    return [outcome, train_again(study, name, truth)]


def follow_stopped(study: Path, name: str, truth: dict[str, Any]) -> list[str]:
    """Sample from a stopped run whose file was changed, and resume it."""
    code, said = text_of(study / "run")
    outcome = refusal(code, said, name) if code else f"wrong: the text is {said}"
    if said == truth["text 16"]:
        outcome = "no effect"
    elif said.endswith(truth["text 8"]) and "Using step-00000008" in said and name in said:
        outcome = "mended"
    return [outcome, train_again(study, name, truth)]


def train_again(study: Path, name: str, truth: dict[str, Any]) -> str:
    """Give the train command of a run once more."""
    code, said = call(train_door, study.parent / "it.toml", f"--out={study / 'run'}")
    if code:
        return refusal(code, said, name)
    if not agree(results(study / "run"), truth["results"]):
        return "wrong: other results"
    return "mended" if any(text in said for text in MENDED) else "no effect"


def agree(found: dict[str, Any], true: dict[str, Any]) -> bool:
    """Whether weights and records are the true ones. A record may lack a figure or have one more, but no other."""
    if found["weights"] != true["weights"] or len(found["records"]) != len(true["records"]):
        return False
    pairs = zip(found["records"], true["records"], strict=True)
    return all(one[key] == other[key] for one, other in pairs for key in one.keys() & other.keys())


def refusal(code: int, said: str, name: str) -> str:
    """Return whether a door has refused a run in one message that names the file."""
    named = name in said or "holds a run with another config" in said
    return "refused" if code == 2 and named and "Traceback" not in said else f"wrong: code {code}: {said}"


def try_in_a_process(home: Path, number: int) -> tuple[str, str, str]:
    """Make one change in a process of its own, which may crash; return what `try_change` does."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(try_change(home, number)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return title(*PLACES[number % len(PLACES)]), "", "crash"
    finally:
        process.join()


def main() -> None:
    """Read the command line, make the changes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--only", type=int, help="the number of one change, to be told all of it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        # No network is trained in this process: torch cannot take a gradient after a fork in one that has.
        maker = multiprocessing.get_context("fork").Process(target=make_runs, args=(home,))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        os.environ |= {"ACTGPT_CACHE": str(home / "cache"), "WANDB_MODE": "disabled"}
        # What the doors import late is imported once, and not in every process.
        follow_finished(home / "finished", "", json.loads((home / "truth.json").read_text()))
        text_of(home / "finished" / "run")
        numbers = [options.only] if options.only is not None else range(options.changes)
        for number in numbers:
            place, change, outcome = try_in_a_process(home, number)
            counts.setdefault(place, Counter())[outcome.partition(" ")[0].rstrip(":")] += 1
            if options.only is not None or outcome.startswith(("wrong", "traceback", "crash")):
                print(f"{number}  {place}  {change}\n    {outcome}", flush=True)
    print("| file | changes | " + " | ".join(OUTCOMES) + " |")
    print("|---|" + "---|" * (1 + len(OUTCOMES)))
    for place, outcomes in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        numbers = [outcomes[outcome.partition(" ")[0]] for outcome in OUTCOMES]
        print(f"| {place} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
