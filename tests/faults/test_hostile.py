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
KINDS = {  # name: the poison, and the exit codes of sample.py, eval.py and then train.py
    "pickle as weights": (in_checkpoint(WEIGHTS, lambda run: pickle.dumps(Payload(run))), 2, 2, 2),
    "header longer than any file": (in_checkpoint(WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"), 2, 2, 2),
    "header deeply nested": (in_checkpoint(WEIGHTS, struct.pack("<Q", len(DEEP)) + DEEP), 2, 2, 2),
    "state of wrong types": (values("state.json", offset="0", val=[]), 2, 2, 2),
    "state deeply nested": (in_checkpoint("state.json", DEEP), 2, 2, 2),
    "wandb id that is a path": (values("state.json", wandb_id="../../../evil"), 2, 2, 2),
    "offset beyond the file": (values("state.json", offset=10**12), 0, 0, 2),
    "pickle as optimiser": (in_checkpoint(OPTIMIZER, lambda run: pickle.dumps(Payload(run))), 0, 0, 2),
    "tokenizer with a broken pattern": (values("tokenizer.json", pattern="(((("), 2, 2, 0),
    "tokenizer deeply nested": (in_checkpoint("tokenizer.json", DEEP), 2, 2, 0),
    # Without a manifest the checkpoint before it is used.
    "manifest with a path": (in_run(MANIFEST, b'{"../../../evil": "0"}'), 0, 0, 0),
    "manifest deeply nested": (in_run(MANIFEST, DEEP), 0, 0, 0),
    "pickles and scripts beside": (pickles_beside, 0, 0, 0),
    "a config of 50 MB": (config(lambda text: text + "#" * (50 << 20)), 2, 2, 2),
    "a config deeply nested": (config(lambda text: text + "x = " + "[" * 10_000 + "]" * 10_000), 2, 2, 2),
    "an activation that is a path": (config(lambda text: text.replace('"gelu"', '"../../evil"')), 2, 2, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_another_hand_is_refused_or_does_nothing_of_its_own(run, call, tmp_path, kind):
    poison, *codes = KINDS[kind]
    poison(run)
    before = snapshot(tmp_path, run)
    commands = [("sample", run, "--tokens=3"), ("eval", run), ("train", run / "config.toml", f"--out={run}")]
    said = [call(*command) for command in commands]
    assert [code for code, _ in said] == codes, said
    assert not (run / "canary").exists()
    assert snapshot(tmp_path, run) == before


FILES = {  # name: the file of a study, and its content
    "records that are none": ("run/metrics.jsonl", b"[1, 2]\n3\n"),
    "records of wrong types": ("run/metrics.jsonl", b'{"step": "x", "tokens": [], "time": {}, "train/loss": "y"}\n'),
    "a record deeply nested": ("run/metrics.jsonl", DEEP + b"\n"),
    "a huge number": ("run/metrics.jsonl", b'{"step": 1, "tokens": 1e999, "time": 1, "train/loss": 1e999}\n'),
    "a summary that is a list": ("run/summary.json", b"[]"),
    "a summary of wrong types": ("run/summary.json", b'{"val/loss": [], "status": 3, "environment": 1}'),
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
