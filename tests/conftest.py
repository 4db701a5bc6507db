import os
import random
import signal

import pytest
import torch
from hypothesis import settings

from data.batches import train_batch
from training import step as one_step
from training.config import RunConfig, build

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported: no test waits for the Hub
os.environ["WANDB_MODE"] = "disabled"  # tests of the mirror say otherwise
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
    draw = random.Random(0)
    words = ["the", "king", "and", "queen", "of", "night", "speak", "not", "to", "me", "sweet", "sorrow"]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(1000)), encoding="utf-8")
    return path


@pytest.fixture
def tiny(corpus):
    """Return a function from changes (`section={...}`) to the config of a run that takes a second."""

    def make(**changes) -> RunConfig:
        tree = {
            "data": {"corpus": str(corpus), "tokenizer": "bytes", "val_fraction": 0.05, "test_fraction": 0.05},
            "model": {"n_layer": 2, "n_head": 2, "d_model": 24, "context": 16},
            "train": {"tokens": 16 * 4 * 20, "batch_size": 4, "log_every": 2, "eval_every": 8, "checkpoint_every": 6}
            | {"threads": 1, "precision": "fp32", "lr": 1e-2},
        }
        return build({name: tree.get(name, {}) | changes.get(name, {}) for name in tree | changes}, "test")

    return make


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that makes the next run receive a real signal within the given step."""

    def arrange(step, signum=signal.SIGTERM):
        def batch(tokens_N, seed, at, *shape):
            if at == step:
                monkeypatch.setattr(one_step, "train_batch", train_batch)
                os.kill(os.getpid(), signum)
            return train_batch(tokens_N, seed, at, *shape)

        monkeypatch.setattr(one_step, "train_batch", batch)

    return arrange


@pytest.fixture
def wandb_home(monkeypatch, tmp_path):
    """wandb as for a user who never logged in, with nothing written outside the test's folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
