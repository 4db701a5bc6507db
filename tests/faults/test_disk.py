"""Disks that are full or read-only: nothing half written, what was there stays, and a message that says it all.

A full disk is a small tmpfs, which fills by the page. A limit on the size of files stops a write at any byte.
"""

import contextlib
import random
import re
import resource

import pytest
from helpers import SMALL, newest, records, remount, same_weights, save_checkpoint, step

from errors import UserError
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainConfig
from training.optim import build_optimizers

PAGE = 4096
NEED = r"it needs [\d,]+ bytes, and [\d,]+ are free there"
NO_CACHE = r"cache cannot be written \(.*No space left.*[\d,]+ bytes are free there\. Set ACTGPT_CACHE"
NO_ROOM = rf"{NEED}|{NO_CACHE}|--out .*: No space left"
SHORT = ["--train.tokens=640", "--train.log_every=1", "--train.eval_every=5", "--train.checkpoint_every=4"]


def flags(corpus, out):
    """A run of 10 steps that saves at 4, 8 and 10."""
    small = [*SMALL, *SHORT, "--train.keep=1", "--train.threads=1"]
    return ["configs/single.toml", f"--data.corpus={corpus}", "--data.tokenizer=bytes", *small, f"--out={out}"]


def names(folder):
    """All that is below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


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
    """Save a network with its optimiser as the checkpoint of step n."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=32, context=8), 257, seed=n)
    optimizers = build_optimizers(model, TrainConfig())
    step(model, optimizers, n)
    return save_checkpoint(folder, n, model, optimizers)


def test_a_save_that_is_stopped_at_any_byte_leaves_the_checkpoint_before(tmp_path, times):
    folder, draw = tmp_path / "checkpoints", random.Random(0)
    save(folder, 1)
    sizes = [path.stat().st_size for path in save(folder, 2).iterdir()]
    before = names(folder)
    for _ in range(times(4, 15)):
        with largest_file(draw.randrange(max(sizes))), pytest.raises(UserError, match=NEED) as refused:
            save(folder, 3)
        assert str(folder / "step-00000003") in str(refused.value)
        assert names(folder) == before
        assert newest(folder) == folder / "step-00000002"


def test_a_run_on_a_disk_of_any_size_ends_well_or_says_what_it_needs(disk, call, corpus, tmp_path, times, monkeypatch):
    code, said = call("train", *flags(corpus, tmp_path / "whole"))
    assert code == 0, said
    small, refused, pages = disk(PAGE), 0, 1
    monkeypatch.setenv("ACTGPT_CACHE", str(small / "cache"))
    while True:
        remount(small, f"size={pages * PAGE}")
        code, said = call("train", *flags(corpus, small / "run"))
        if code == 0:
            break
        refused += 1
        assert code == 2, said
        assert re.search(NO_ROOM, said), said
        for metrics in small.glob("run/metrics.jsonl"):
            assert metrics.read_bytes()[-1:] in (b"", b"\n")
        assert not {name for name in names(small) if ".partial" in name}
        pages += times(12, 1)
    print(f"{refused} sizes that were too small, up to {pages * PAGE:,} bytes")
    assert refused >= 3
    assert records(small / "run") == records(tmp_path / "whole")
    assert same_weights(small / "run", tmp_path / "whole")


def test_folders_that_are_read_only_are_named_and_can_be_read(disk, call, corpus, tmp_path, monkeypatch):
    folder = disk("4m")
    monkeypatch.setenv("ACTGPT_CACHE", str(folder / "cache"))
    code, said = call("train", *flags(corpus, folder / "run"))
    assert code == 0, said
    remount(folder, "ro")
    for wanted, arguments in [
        (2, ("train", *flags(corpus, folder / "run"))),
        (2, ("train", *flags(corpus, folder / "new"))),
        (0, ("train", *flags(corpus, tmp_path / "elsewhere"))),  # from the cache as it is
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
    assert re.search(r"cache cannot be written \(.*Read-only file system.*\): .* Set ACTGPT_CACHE", said)


@pytest.mark.parametrize("pages", [2, 8])  # the logs of the runs have no room; they have
def test_a_study_on_a_full_disk_says_which_runs_failed_and_why(disk, call, corpus, pages):
    activations = '--model.activation=["relu", "gelu"]'
    out = disk(pages * PAGE) / "study"
    code, said = call("train", *flags(corpus, out), activations, "--study.engine=processes")
    assert code in (1, 2), said
    for name in ("relu", "gelu"):
        assert re.search(rf"^{name}( failed)?[:;].*No space left on device", said, re.MULTILINE), said
    assert "failed: relu, gelu" in said
