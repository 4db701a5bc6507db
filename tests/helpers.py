"""Shared by the tests: folders of runs and studies as training leaves them, and real processes of the doors."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from torch import nn

from data.batches import train_batch
from data.tokenizer import Tokenizer, train_tokenizer
from errors import Interrupted
from files import sha256_of
from model.config import ModelConfig
from model.gpt import GPT
from study.judge.effects import compare_arms
from study.judge.results import load_study
from training import checkpoint
from training import step as one_step
from training.config import RunConfig, TrainConfig, build, tree
from training.loop import train

ROOT = Path(__file__).parent.parent
SMALL = ["--model.n_layer=2", "--model.n_head=2", "--model.d_model=24", "--model.context=16", "--train.batch_size=4"]
OFTEN = ["--train.log_every=5", "--train.eval_every=50", "--train.checkpoint_every=10", "--train.tokens=16000"]


def run_flags(corpus):
    """The flags of a run of 250 steps."""
    return [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *SMALL, *OFTEN, "--train.threads=1"]


def begin(corpus, out, *more, config="configs/single.toml", **env):
    """Start train.py on a run of a few seconds."""
    command = [sys.executable, "train.py", config, *run_flags(corpus), *more, f"--out={out}"]
    environment = {name: value for name, value in (os.environ | env).items() if value is not None}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def until(process, condition):
    """Wait for a condition while a process runs."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def trains(out):
    """Whether a run has written its first record, and so is in its loop."""
    metrics = out / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def descendants(pid):
    """The process ids below a process, the nearest first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for above in found:
        found += [below for below, parent in parents.items() if parent == above]
    return found[1:]


def remount(folder, options):
    """Change the size of a mounted file system, or make it read-only (`ro`)."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


RECORDS = b'{"step": 0, "tokens": 0, "time": 0.0}\n'
TOKENIZER: Tokenizer = train_tokenizer("bytes", iter(()))
GELU = [4.0, 4.0625, 3.9375, 4.03125, 3.96875]
SIGMOID_GAPS = [0.25, 0.25, 0.1875, 0.3125, 0.25]  # mean 0.25
NOISE = [0.004, -0.003, 0.002, -0.004, 0.001]
ENDS = {"sigmoid": 4.25, "relu": 4.125, "gelu": 4.0, "silu": 4.0625, "swiglu": 3.875}
HOSTILE = "<script>alert(1)</script>%{x}</script><img src=x onerror=alert(2)>"
CLAIM = {
    "name": "C0",
    "title": "Worse",
    "told": "sigmoid is <b>worse</b>",
    "figure": "gaps",
    "expected": "so",
    "change": "nothing",
}


def write_run(folder, activation="gelu", loss: float | None = 4.0, tokens=1000, fingerprint="f", summary=None, **train):
    """Write the folder of a run that ends at `loss`; with `loss=None` it was stopped half-way."""
    folder.mkdir(parents=True)
    config = {
        "data": {"corpus": "shakespeare", "tokenizer": "bytes"},
        "model": {"activation": activation, "n_layer": 2, "context": 128},
        "train": {"seed": 0, "tokens": tokens, "lr": 0.001, "threads": 1} | train,
        "wandb": {"mode": "disabled", "group": folder.name},
    }
    folder.joinpath("config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    end, records = loss or 4.5, []
    for step in range(1, 11 if loss else 6):
        value = end + (10 - step) / 10
        records.append({"step": step, "tokens": step * tokens // 10, "time": step, "train/loss": value + 0.1})
        if step % 2 == 0:
            records[-1] |= {"val/loss": value, "val/perplexity": math.exp(value), "val/bits_per_byte": value / 2}
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    if loss:
        final = {
            "status": "finished",
            "val/loss": loss,
            "val/perplexity": math.exp(loss),
            "val/bits_per_byte": loss / 2,
        }
        final |= {"params/total": 54_321, "flops/token": 2.5e6, "perf/tokens_per_s": 1234.5}
        final |= {"data/fingerprint": fingerprint}
        final |= {"sample/prompt": "O Romeo", "sample/text": f"O Romeo, thou {activation}."}
        final |= {"environment": {"torch": "2.13.0", "device": "cpu", "threads": 1}}
        folder.joinpath("summary.json").write_text(json.dumps(final | (summary or {})), encoding="utf-8")
    return folder


def write_plan(folder, **sections):
    """Write the study.toml of a study folder."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("study.toml").write_text(tomli_w.dumps(sections), encoding="utf-8")
    return folder


def write_arm(study, activation, losses, prefix="", **options):
    for seed, loss in enumerate(losses):
        write_run(study / f"{prefix}{activation}-seed{seed}", activation, loss, seed=seed, **options)


def tune(study, activation, losses, seeds=(1000,)):
    for lr, loss in losses.items():
        for seed in seeds:
            folder = study / "tune" / f"{activation}-lr{lr}-seed{seed}"
            write_run(folder, activation, loss, tokens=500, lr=lr, seed=seed)


def plan(*predictions, activations=("sigmoid", "gelu"), seeds=5, **claim):
    return {
        "model": {"activation": list(activations)},
        "train": {"seed": list(range(seeds)), "tokens": 1000},
        "claim": CLAIM | claim,
        "prediction": [
            {"text": "it", "plus": [{"activation": "sigmoid"}], "minus": [{"activation": "gelu"}]} | p
            for p in predictions
        ],
    }


def write_study(folder, tree, losses):
    """Write a study of a claim and the runs of each activation, one for each seed."""
    for activation, finals in losses.items():
        for seed, loss in enumerate(finals):
            write_run(folder / f"{activation}-seed{seed}", activation, loss, seed=seed)
    folder.joinpath("study.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
    return folder


def shifted(gap):
    return [loss + gap + noise for loss, noise in zip(GELU, NOISE, strict=True)]


def add_probes(study, at):
    """Add measurements of three blocks to every run of a study: `at(seed, step, block)`."""
    for path in study.glob("*/metrics.jsonl"):
        seed, records = int(path.parent.name[-1]), [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["step"] in (2, 10):
                record |= {f"grad/blocks.{i}/rms": at(seed, record["step"], i) for i in range(3)}
                record |= {f"act/blocks.{i}/mean_share": 0.5 for i in range(3)}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def rows_of(*paths, reference: str | None = "gelu"):
    return compare_arms(load_study(paths), reference)


def by_label(rows):
    return {row.arm.label: row for row in rows}


def cells(rows, columns_of):
    return {column.title: [column.cell(row).text for row in rows] for column in columns_of(rows)}


TIMES = {"time", "perf/tokens_per_s", "perf/mfu"}


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def newest(checkpoints):
    """Return the newest intact checkpoint in a folder, or None."""
    return checkpoint.load_newest(checkpoints, lambda path: path)


def weights(folder):
    path = newest(folder / "checkpoints")
    assert path is not None
    return load_file(path / "model.safetensors")


def same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def save_checkpoint(folder, n, model, optimizers, probes=None, keep=2):
    """Save a checkpoint as a run with `config_of(model)` does at step n."""
    state = {"time": 1.0, "train_seconds": 1.0, "skipped": 0, "wandb_id": None, "wandb_best": None}
    state |= {"step": n, "config": tree(config_of(model)), "environment": {}, "fingerprint": "f"}
    windows = np.zeros(3, np.float32)
    return checkpoint.save(folder, model, optimizers, probes or {}, state, TOKENIZER, RECORDS, windows, keep)


def config_of(model):
    """Return the config of a run that trains such a model for very long."""
    return RunConfig(model=model.config, train=TrainConfig(tokens=10**9))


def step(model, optimizers, seed):
    x_BT = torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(seed))
    model(x_BT, x_BT).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


# Networks, for tests/model.
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def loud_model(name: str = "gelu", **changes) -> GPT:
    """A small network in float64, its matrices far above their initial size: attention is sharp, neurons are bent."""
    config = ModelConfig(activation=name, **{"n_layer": 2, "n_head": 2, "d_model": 12, "context": 8, **changes})
    model = GPT(config, n_vocab=11).double()
    with torch.no_grad():
        weights = [(key, weight) for key, weight in model.named_parameters() if ".act." not in key]
        for i, (key, weight) in enumerate(weights):
            if weight.ndim == 2:
                weight *= 30 if "blocks" in key else 10
            elif weight.ndim == 1:
                weight[:] = torch.linspace(0.5, 2, len(weight)).roll(i)  # no two norms are alike
    return model


def without_gradient(model: GPT) -> list[str]:
    """The names of the parameters that a backward pass did not reach."""
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


# Helpers of tests/training


def write_corpus(path):
    """Write a text of 40 kB whose words come in a fixed, partly predictable order."""
    draw = random.Random(0)
    words = ["the", "king", "and", "queen", "of", "night", "speak", "not", "to", "me", "sweet", "sorrow"]
    path.write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(1000)), encoding="utf-8")
    return path


def tiny_config(corpus, **changes):
    """Return the config of a run that takes half a second; `changes` are keys by section."""
    tree = {
        "data": {"corpus": str(corpus), "tokenizer": "bytes", "val_fraction": 0.02, "test_fraction": 0.02},
        "model": {"n_layer": 2, "n_head": 2, "d_model": 24, "context": 16},
        "train": {"tokens": 16 * 4 * 20, "batch_size": 4, "log_every": 2, "eval_every": 8, "checkpoint_every": 6}
        | {"threads": 1, "precision": "fp32", "lr": 1e-2},
    }
    return build({name: tree.get(name, {}) | changes.get(name, {}) for name in tree | changes}, "test")


def set_wandb_home(monkeypatch, home):
    """Make wandb see a user who never logged in, and write nothing outside of `home`."""
    # A wandb that an earlier test has started in this process would serve the processes of this test too.
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(home))
    home.mkdir()


def wandb_entries(run):
    """Return the entries of an offline wandb run, read by wandb's own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def rewrite(path, name, write):
    """Replace one file of a checkpoint, and its hash in the manifest: a foreign file that is not damaged."""
    write(path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {name: sha256_of(path / name)}))


def signal_at(monkeypatch, step, signum=signal.SIGTERM):
    """Make the next run of this process receive a real signal within the given step."""

    def batch(tokens_N, seed, at, *shape):
        if at == step:
            monkeypatch.setattr(one_step, "train_batch", train_batch)
            os.kill(os.getpid(), signum)
        return train_batch(tokens_N, seed, at, *shape)

    monkeypatch.setattr(one_step, "train_batch", batch)


def train_and_stop(config, folder, stop_at, step):
    """Train a run until SIGTERM reaches it within a step; `stop_at` is the fixture."""
    stop_at(step)
    with pytest.raises(Interrupted):
        train(config, folder)


class Noisy(nn.Module):
    """A ReLU that adds noise in training, as torch's RReLU has it in its slope."""

    def forward(self, u):
        return u.relu() + 0.5 * torch.randn_like(u) if self.training else u.relu()


def values(named):
    """Return tensors of one number each as numbers."""
    return {name: value.item() for name, value in named.items()}


def texts_of_all_kinds(count):
    """Return `count` lines of words, numbers, scripts and white space in every order."""
    words = ["O Romeo", "'ll", "'LL", "don't", "'\u017f", "12345", "٣٤", "é", "e\u0301", "日本語", "\U0001f600"]
    words += ["a.b!", "--", "x=1;"]
    spaces = [" ", "  ", "\t", "\n", "\r\n", "\n\n  ", "\u00a0", "\u3000", "\x85", ""]
    draw = random.Random(0)
    texts = ["".join(word + space for word in words) for space in spaces]
    while len(texts) < count:
        letters = "".join(draw.choices("etaoinshrdluETA ", k=draw.randint(0, 9)))
        length = draw.randint(1, 12)
        texts.append("".join(draw.choice((*words, letters)) + draw.choice(spaces) for _ in range(length)))
    return texts
