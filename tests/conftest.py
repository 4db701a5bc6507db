import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported: no test waits for the Hub


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
