"""One run over two processes, started by torchrun as a user would, against the same run in one process."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
from helpers import ROOT, records, signal_at, tiny_config, train_and_stop, write_corpus
from safetensors.torch import load_file

import train as train_door
from data.dataset import prepare
from errors import UserError
from training.config import to_toml
from training.contents import read_summary
from training.ddp import ONE_PROCESS, Process, check_batch
from training.limits import check_same_everywhere
from training.loop import train

# A plugin, since the processes load it. The second one suffers a fault in the first attempt, and one in the next.
FAULTS = """
import os, signal
from training import step
ACTIVATIONS, whole = {}, step.train_batch
def train_batch(tokens_N, seed, at, *shape):
    if os.environ["RANK"] == "1":
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        if (attempt, at) == ("0", 12):
            os.kill(os.getpid(), signal.SIGTERM)
        if (attempt, at) == ("1", 16):
            raise OSError("the disk is gone")
    return whole(tokens_N, seed, at, *shape)
step.train_batch = train_batch
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTGPT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def config(folder):
    """Twenty steps of two micro-batches of four; a validation set that fills neither its last batch nor its window."""
    return tiny_config(
        write_corpus(folder / "corpus.txt"),
        model={"activation": "swiglu"},
        train={"tokens": 16 * 8 * 20, "batch_size": 8, "accumulate": 2, "log_every": 1, "keep": 9, "probes": 5},
    )


@pytest.fixture(scope="module")
def solo(folder, config):
    """The folder of the run in one process."""
    train(config, folder / "solo")
    return folder / "solo"


@pytest.fixture(scope="module")
def two(folder, config):
    """The run in one process for four steps, then on two: stopped by a signal, ended by a fault, and finished."""
    with pytest.MonkeyPatch.context() as patch:
        train_and_stop(config, folder / "two", partial(signal_at, patch), 3)
    (folder / "two.toml").write_text(to_toml(config))
    (folder / "faults.py").write_text(FAULTS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["train.py", str(folder / "two.toml"), f"--out={folder / 'two'}", f"--plugin={folder / 'faults.py'}"]
    env = os.environ | {"ACTGPT_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def figures(folder):
    """Return every metric of the records, but times."""
    found = {}
    for record in records(folder):
        found |= {f"{key} {record['step']}": value for key, value in record.items() if value is not None}
    return found


def assert_close(folder, solo):
    """All metrics agree to 1e-5; those of the probes, which count signs and saturated units, to 1e-2."""
    ours, theirs = figures(folder), figures(solo)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        exact = key.startswith(("train/", "val/", "grad/norm"))
        assert ours[key] == pytest.approx(value, rel=1e-5 if exact else 1e-2, abs=0 if exact else 1e-3), key


def test_two_processes_give_the_numbers_of_one_from_a_checkpoint_of_one(folder, solo, two):
    assert_close(folder / "two", solo)
    ours, theirs = read_summary(folder / "two"), read_summary(solo)
    assert ours is not None
    assert theirs is not None
    assert ours["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-5)
    assert ours["sample/text"] == theirs["sample/text"]
    assert ours["environment"]["ranks"] == 2
    assert two.stdout.count("ranks was 1, is 2: not bitwise the same from now on") == 1


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_the_first_alone_speaks(two):
    assert two.stderr.count("stopped at step 13 of 20; the same command resumes it") == 1
    assert two.stdout.count("resumed at step 13 of 20") == 2  # after the signal, and after the fault
    assert two.stdout.count("finished: ") == 1


def test_a_process_that_fails_says_why_and_ends_all(two):
    assert two.stderr.count("OSError: the disk is gone\n") == 1
    assert "Traceback" not in two.stderr  # the fault is in a plugin
    assert "Connection" not in two.stderr


def test_a_checkpoint_of_two_processes_resumes_in_one(folder, config, solo, two, capfd):
    shutil.copytree(folder / "two", folder / "one")
    (folder / "one" / "summary.json").unlink()
    for later in ("step-00000018", "step-00000020"):
        shutil.rmtree(folder / "one" / "checkpoints" / later)
    train(config, folder / "one")
    assert "ranks was 2, is 1: not bitwise the same from now on" in capfd.readouterr().out
    assert_close(folder / "one", solo)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(p / "checkpoints" / "step-00000012" / name) for p in (folder / "two", solo))
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_a_batch_that_does_not_split_is_refused(tiny):
    check_batch(tiny(train={"batch_size": 8, "accumulate": 2}), 2)
    with pytest.raises(UserError, match=r"batch_size = 6 .* does not split .* Make it a multiple of 4"):
        check_batch(tiny(train={"batch_size": 6, "accumulate": 2}), 2)


def test_a_study_over_processes_is_refused_before_anything_is_done(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--out={tmp_path / 'study'}"])
    with pytest.raises(UserError, match="torchrun spreads one run, and this is a study of 5"):
        train_door.main()
    assert not (tmp_path / "study").exists()


class Second(Process):
    """A process that hears of a first one with another config, other data or another precision."""

    def __init__(self, **heard):
        super().__init__(rank=1, size=2)
        self.heard = heard

    def first(self, call):
        config, fingerprint, precision = json.loads(json.dumps(call()))  # as it travels
        config["train"] |= {key: value for key, value in self.heard.items() if key in config["train"]}
        return [config, self.heard.get("fingerprint", fingerprint), self.heard.get("picked", precision)]


def test_processes_that_would_train_something_else_are_refused(tiny):
    config = tiny()
    data = prepare(config.data)
    check_same_everywhere(config, data, ONE_PROCESS)
    check_same_everywhere(config, data, Second(keep=7))
    with pytest.raises(UserError, match=r"would not train what the first one does:\n  train\.lr: 0\.5 .* 0\.01"):
        check_same_everywhere(config, data, Second(lr=0.5))
    with pytest.raises(UserError, match=r"other tokens: is .* equal on all hosts"):
        check_same_everywhere(config, data, Second(fingerprint="f"))
    with pytest.raises(UserError, match=r"precision fp32, and bf16 in the first: set --train\.precision"):
        check_same_everywhere(config, data, Second(picked="bf16"))
