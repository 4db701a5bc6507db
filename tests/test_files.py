import errno
import hashlib
import os
import resource
import subprocess
import sys

import pytest
from helpers import ROOT

from errors import UserError
from files import replacing, sha256_of, write_file, write_folder, writing


@pytest.fixture
def small_files():
    """No file that this process writes grows beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_until_killed(code, *arguments):
    """Run code in another process that kills itself at the end."""
    script = f"import os, signal, sys\nfrom pathlib import Path\nfrom files import *\n{code}"
    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT)
    assert ended.returncode == -9


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, small_files):
    path = tmp_path / "config.toml"
    write_file(path, "é" * 100)
    with pytest.raises(UserError, match=r"config.toml cannot be written .*it needs 2,000 bytes, and [\d,]+ are free"):
        write_file(path, "é" * 1000)
    assert path.read_text(encoding="utf-8") == "é" * 100
    assert names(tmp_path) == ["config.toml"]
    write_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["config.toml"]


def test_a_folder_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "step-1"
    for content in ("one", "two"):
        with write_folder(path) as temporary:
            (temporary / f"{content}.json").write_text(content)
            assert not (path / f"{content}.json").exists()
    assert names(path) == ["two.json"]
    assert names(tmp_path) == ["step-1"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path, small_files):
    path = tmp_path / "step-1"
    with write_folder(path) as temporary:
        (temporary / "a.bin").write_bytes(b"old")
    with pytest.raises(OSError, match="File too large"), write_folder(path) as temporary:
        (temporary / "a.bin").write_bytes(bytes(2000))
    assert (path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["step-1"]


def test_what_a_killed_process_left_is_removed_and_never_used(tmp_path):
    path = tmp_path / "step-1"
    kill = "(temporary / 'stray').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    run_until_killed(f"with write_folder(Path(sys.argv[1])) as temporary: {kill}", path)
    assert not path.exists()
    assert len(names(tmp_path)) == 1
    with write_folder(path) as temporary:
        (temporary / "a.bin").touch()
    assert names(path) == ["a.bin"]
    assert names(tmp_path) == ["step-1"]


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def note_replace(source, target):
        events.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with write_folder(tmp_path / "step-1") as temporary:
        (temporary / "a.bin").write_bytes(b"a")
    assert events == ["a.bin", ".step-1.partial", "rename step-1", tmp_path.name]
    events.clear()
    write_file(tmp_path / "b.json", "{}")
    assert events == [".partial", "rename b.json"]


def test_processes_that_replace_one_file_at_once_do_not_mix(tmp_path, small_files):
    path = tmp_path / "report.html"
    script = "import sys; from pathlib import Path; from files import replacing\n"
    script += "with replacing(Path(sys.argv[1])) as temporary: temporary.write_text('theirs')"
    with replacing(path) as temporary:
        temporary.write_text("ours")
        subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=True)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    with pytest.raises(OSError, match="File too large"), replacing(path) as temporary:
        temporary.write_bytes(bytes(2000))
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["report.html"]


def test_a_disk_that_refuses_is_named_with_what_is_free_and_the_way_out(tmp_path):
    path = tmp_path / "absent" / "a"
    said = r"absent/a cannot be written \(.*Read-only.*\): [\d,]+ bytes are free there\. Do\."
    with pytest.raises(UserError, match=said), writing(path, way_out="Do."):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(UserError, match="its folder was removed or renamed"):
        write_file(path, "x")
    with pytest.raises(ZeroDivisionError), writing(path):
        raise ZeroDivisionError


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
