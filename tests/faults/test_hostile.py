"""Files that another hand put in the place of a run's own: nothing in them is executed, and no traceback follows.

Whoever makes them knows our formats: where a checkpoint is changed, its manifest is made to match.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from training import checkpoint
from training.config import build
from training.loop import train

HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>"
DEEP = b"[" * 100_000 + b"]" * 100_000
NEWEST = "checkpoints/step-00000016"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps without its last checkpoint and its summary: it is to go on from step 16."""
    folder, draw = tmp_path_factory.mktemp("trained"), random.Random(0)
    (folder / "corpus.txt").write_text(" ".join(draw.choices(["the", "king", "and", "queen", "of", "night"], k=4000)))
    tree = {
        "data": {"corpus": str(folder / "corpus.txt"), "tokenizer": "bytes"},
        "model": {"n_layer": 1, "n_head": 2, "d_model": 24, "context": 16},
        "train": {"tokens": 1280, "batch_size": 4, "checkpoint_every": 8, "eval_every": 10, "threads": 1, "keep": 3},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTGPT_CACHE", str(folder / "cache"))
        train(build(tree, "it"), folder / "run")
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000020")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, in a folder in which nothing else may change."""
    return Path(shutil.copytree(trained, tmp_path / "home" / "run"))


class Payload:
    """Makes a file named "canary" in the folder of the run when it is unpickled."""

    def __init__(self, run):
        self.canary = run / "canary"

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def snapshot(folder, without):
    """All that is below a folder, with its content; but for a part of it, the cache and reports."""
    return {
        path: path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if without not in (path, *path.parents) and "cache" not in path.parts and path.suffix != ".html"
    }


def in_checkpoint(name, content):
    """A poison: other content for a file of the newest checkpoint; `content` is bytes, or makes them from the run."""

    def poison(run):
        path = run / NEWEST
        (path / name).write_bytes(content(run) if callable(content) else content)
        manifest = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in checkpoint.FILES}
        (path / "manifest.json").write_text(json.dumps(manifest))

    return poison


def values(name, **keys):
    """A poison: other values in a JSON file of the newest checkpoint."""
    return in_checkpoint(name, lambda run: json.dumps(json.loads((run / NEWEST / name).read_text()) | keys).encode())


def in_run(name, content):
    """A poison: other content for a file of the run."""
    return lambda run: (run / name).write_bytes(content)


def config(change):
    """A poison: another text of the config."""
    return lambda run: (run / "config.toml").write_text(change((run / "config.toml").read_text()))


def pickles_beside(run):
    """A poison: pickles and scripts beside the files that are read."""
    for name in ("model.pt", "pytorch_model.bin", "optimizer.pkl", "sitecustomize.py"):
        text = f"import os\nos.system('touch {run / 'canary'}')\n".encode()
        (run / NEWEST / name).write_bytes(text if name.endswith(".py") else pickle.dumps(Payload(run)))
    np.save(run / "val_windows.npy", np.array([Payload(run)], dtype=object), allow_pickle=True)


WEIGHTS, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", f"{NEWEST}/manifest.json"
IN_CHECKPOINT = {  # the poison, and the file that a warning names before the checkpoint before is used
    "pickle as weights": (in_checkpoint(WEIGHTS, lambda run: pickle.dumps(Payload(run))), WEIGHTS),
    "header longer than any file": (in_checkpoint(WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"), WEIGHTS),
    "state deeply nested": (in_checkpoint("state.json", DEEP), "state.json"),
    "wandb id that is a path": (values("state.json", wandb_id="../../../evil"), "state.json"),
    "tokenizer with a slow pattern": (values("tokenizer.json", pattern="(a+)+$"), "tokenizer.json"),
    "manifest with a path": (in_run(MANIFEST, b'{"../../../evil": "0"}'), "manifest.json"),
    "pickle as optimiser": (in_checkpoint(OPTIMIZER, lambda run: pickle.dumps(Payload(run))), OPTIMIZER),
    "records that are none": (in_checkpoint("metrics.jsonl", b"[1, 2]\n3\n"), "metrics.jsonl"),
    "pickles and scripts beside": (pickles_beside, ""),
}
TRAINING_ONLY = (OPTIMIZER, "metrics.jsonl")  # files of a checkpoint that only a resume reads
OF_THE_RUN = {
    "a config deeply nested": config(lambda text: text + "x = " + "[" * 10_000 + "]" * 10_000),
    "an activation that is a path": config(lambda text: text.replace('"gelu"', '"../../evil"')),
    "more layers than memory": config(lambda text: text.replace("n_layer = 1", "n_layer = 1000000000")),
}


def commands(run):
    return [("sample", run, "--tokens=3"), ("eval", run), ("train", run / "config.toml", f"--out={run}")]


@pytest.mark.parametrize("kind", IN_CHECKPOINT)
def test_a_checkpoint_of_another_hand_gives_way_to_the_one_before_it(run, call, tmp_path, kind):
    poison, name = IN_CHECKPOINT[kind]
    poison(run)
    before = snapshot(tmp_path, run)
    for command in commands(run):
        code, said = call(*command)
        assert code == 0, said
        reads = name not in TRAINING_ONLY if command[0] != "train" else name != "tokenizer.json"
        assert (f"{name} is damaged or was not written by this project" in said) == (bool(name) and reads)
    assert not (run / "canary").exists()
    assert snapshot(tmp_path, run) == before


@pytest.mark.parametrize("kind", OF_THE_RUN)
def test_a_run_of_another_hand_is_refused(run, call, tmp_path, kind):
    OF_THE_RUN[kind](run)
    before = snapshot(tmp_path, run)
    assert [call(*command)[0] for command in commands(run)] == [2, 2, 2]
    assert snapshot(tmp_path, run) == before


FILES = {  # name: the file of a study, and its content
    "records that are none": ("run/metrics.jsonl", b"[1, 2]\n3\n"),
    "a record deeply nested": ("run/metrics.jsonl", DEEP + b"\n"),
    "a huge number": ("run/metrics.jsonl", b'{"step": 1, "tokens": 1e999, "time": 1, "train/loss": 1e999}\n'),
    "a summary that is a list": ("run/summary.json", b"[]"),
    "a config without tables": ("run/config.toml", b'model = 1\ntrain = "x"'),
    "a config of HTML": ("run/config.toml", f'[model]\nactivation = "{HTML}"'.encode()),
    "a study of HTML": ("study.toml", f'[model]\nactivation = ["{HTML}"]\n[study]\nreference = "{HTML}"'.encode()),
    "a plan of wrong types": ("study.toml", b"[model]\nactivation = 1\n[[grid]]\nmodel.n_layer = []"),
    "a study of noise": ("study.toml", b"\xff[[["),
    "a study of paths": ("study.toml", b'[model]\nactivation = ["../../evil", "/etc/passwd"]'),
}


@pytest.mark.parametrize("kind", [*FILES, "pickled windows"])
def test_a_study_of_another_hand_is_compared_or_refused(run, call, tmp_path, kind):
    if kind in FILES:
        name, content = FILES[kind]
        (run.parent / name).write_bytes(content)
    else:
        losses = dict.fromkeys(("val/loss", "val/perplexity", "val/bits_per_byte"), 4.0)
        (run / "summary.json").write_text(json.dumps(losses))
        pickles_beside(run)
    before = snapshot(tmp_path, run.parent)
    code, said = call("eval", run.parent)
    assert code in (0, 2), said
    assert not (run / "canary").exists()
    assert snapshot(tmp_path, run.parent) == before
    if code == 0:
        page = (run.parent / "report.html").read_text(encoding="utf-8")
        assert "<script>alert" not in page
        assert "<img src=x" not in page
