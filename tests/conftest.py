import importlib
import os
import sys
from functools import partial

import pytest
import torch
from helpers import (
    GELU,
    HOSTILE,
    ROOT,
    SIGMOID_GAPS,
    add_probes,
    plan,
    set_wandb_home,
    shifted,
    signal_at,
    tiny_config,
    write_arm,
    write_corpus,
    write_plan,
    write_run,
    write_study,
)
from hypothesis import settings

from errors import door
from model.activations import ACTIVATIONS
from model.plugin import loaded

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported: no test waits for the Hub
os.environ["WANDB_MODE"] = "disabled"  # tests of the mirror say otherwise
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a run has one graph to compile: a pool of processes costs more
torch.set_num_threads(1)  # small tensors gain nothing from more
settings.register_profile("actgpt", deadline=None)  # how long an example takes is no concern of a test
settings.load_profile("actgpt")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="faults in the numbers that docs/reliability.md reports")


@pytest.fixture
def times(pytestconfig):
    """Return a function that picks how often a fault is tried: (in CI, with --long)."""
    return lambda short, long: long if pytestconfig.getoption("--long") else short


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """A cache that keeps fetched wheels for the whole session."""
    return tmp_path_factory.mktemp("shared_cache")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A fresh, empty cache for each test: none reads or fills the user's own."""
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(shared_cache, cache, monkeypatch):
    """The session's cache in place of the fresh one, for tests that need the registry's wheels."""
    monkeypatch.setenv("ACTGPT_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def corpus(tmp_path):
    """A text file of 40 kB whose words come in a fixed, partly predictable order."""
    return write_corpus(tmp_path / "corpus.txt")


@pytest.fixture
def tiny(corpus):
    """Return a function from changes (`section={...}`) to the config of a run that takes a second."""
    return partial(tiny_config, corpus)


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that makes the next run receive a real signal within the given step."""
    return partial(signal_at, monkeypatch)


@pytest.fixture
def wandb_home(monkeypatch, tmp_path):
    """wandb as for a user who never logged in, with nothing written outside the test's folder."""
    set_wandb_home(monkeypatch, tmp_path / "home")


@pytest.fixture
def seeded(tmp_path):
    """Two arms of five seeds, each at its own learning rate."""
    study = tmp_path / "study"
    write_arm(study, "gelu", GELU, lr=0.004)
    write_arm(study, "sigmoid", [loss + gap for loss, gap in zip(GELU, SIGMOID_GAPS, strict=True)], lr=0.008)
    return study


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of three arms with five seeds each, tuned at three learning rates, one of them with a hostile name."""
    study = tmp_path_factory.mktemp("tuned")
    gaps = {"gelu": 0, "sigmoid": 0.25, HOSTILE: -0.125}
    for i, (activation, gap) in enumerate(gaps.items()):
        for seed, noise in enumerate((0, 0.01, -0.01, 0.02, -0.02)):
            loss = 4 + gap + noise + 0.003 * ((seed * i) % 3)
            write_run(study / f"{i}-{seed}", activation, loss, seed=seed, lr=0.01)
        for lr, worse in ((0.005, 0.2), (0.01, 0), (0.02, 0.3)):
            write_run(study / "tune" / f"{i}-{lr}", activation, 4.5 + gap + worse, tokens=500, seed=1000, lr=lr)
    write_run(study / "tune" / "too-high", loss=None, tokens=500, seed=1000, lr=0.04)
    write_plan(
        study,
        model={"activation": list(gaps)},
        train={"seed": [0, 1, 2, 3, 4]},
        study={"lr": [0.005, 0.01, 0.02], "bracket": 1},
    )
    return study


@pytest.fixture
def probed(tmp_path):
    """A study of a claim whose runs hold measurements of three blocks at two steps."""
    tree = plan({"predicts": "above"}, figure="depth")
    study = write_study(tmp_path / "c0", tree, {"gelu": GELU, "sigmoid": shifted(0.1)})
    add_probes(study, lambda seed, step, block: (1 + seed) * step * 2.0**block)
    return study


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that calls a door in this process and gives back its exit code and all that it said.

    A fault that would end the process with a traceback ends the test.
    """

    def run(name, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = door(importlib.import_module(name).main)
        except SystemExit as end:  # of tyro
            code = end.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def registry():
    """The registry, as it was before after the test."""
    before = dict(ACTIVATIONS)
    yield
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)
    loaded.clear()


@pytest.fixture
def no_sample(monkeypatch):
    """Runs write no text at their end, which takes longer than a small run itself."""
    monkeypatch.setattr("training.run.sample_of", lambda *_: "text")
