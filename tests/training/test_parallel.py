"""One run over several processes, started by torchrun as a user would, against the same run in one process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train as train_door
from data.batches import train_batch
from errors import Interrupted, UserError
from model.config import ModelConfig
from model.gpt import GPT
from training import step as one_step
from training.config import RunConfig, build, to_toml
from training.folder import read_summary
from training.loop import train
from training.parallel import Ranks, pick_parallel
from training.sharded import ShardedRanks

ROOT = Path(__file__).parents[2]
FAULT = """
import os, signal
from training import step
ACTIVATIONS, whole = {}, step.train_batch
def train_batch(tokens_N, seed, at, *shape):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and at == AT:
        FAULT
    return whole(tokens_N, seed, at, *shape)
step.train_batch = train_batch
"""


def torchrun(folder, config, out, *flags, fault, restarts=0):
    """Two ranks, the second of which suffers a fault at a step, once: (step, code)."""
    (folder / f"{out}.toml").write_text(to_toml(config))
    plugin = folder / f"{out}.py"
    plugin.write_text(FAULT.replace("AT:", f"{fault[0]}:").replace("FAULT", fault[1]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "train.py", str(folder / f"{out}.toml"), f"--out={folder / out}"]
    command += [f"--plugin={plugin}", *flags]
    env = os.environ | {"ACTGPT_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a corpus whose validation set does not fill its last batch, nor its last window."""
    folder, draw = tmp_path_factory.mktemp("parallel"), random.Random(0)
    words = ["the", "king", "and", "queen", "of", "night", "speak", "not", "to", "me", "sweet", "sorrow"]
    (folder / "corpus.txt").write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(1000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTGPT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def config(folder):
    """Twenty steps of two micro-batches of four."""
    data = {"corpus": str(folder / "corpus.txt"), "tokenizer": "bytes", "val_fraction": 0.02, "test_fraction": 0.02}
    model = {"n_layer": 2, "n_head": 2, "d_model": 24, "context": 16, "activation": "swiglu"}
    often = {"log_every": 1, "eval_every": 8, "checkpoint_every": 6, "keep": 9, "probes": 0}
    once = {"tokens": 16 * 8 * 20, "batch_size": 8, "accumulate": 2, "threads": 1, "precision": "fp32", "lr": 1e-2}
    return build({"data": data, "model": model, "train": often | once}, "test")


@pytest.fixture(scope="module")
def solo(folder, config):
    """The run of one process."""
    train(config, folder / "solo")
    return folder / "solo"


@pytest.fixture(scope="module")
def stopped(folder, config):
    """The run under FSDP: SIGTERM reaches the second rank in the 13th step, torchrun starts both again."""
    fault = 12, "os.kill(os.getpid(), signal.SIGTERM)"
    done = torchrun(folder, config, "fsdp", "--train.parallel=fsdp", fault=fault, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def failed(folder, config):
    """The run under DDP, after a first step in one process; the second rank fails in the 17th."""

    def batch(tokens_N, seed, step, *shape):
        os.kill(os.getpid(), signal.SIGTERM)
        return train_batch(tokens_N, seed, step, *shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "train_batch", batch)
        with pytest.raises(Interrupted):
            train(config, folder / "ddp")
    return torchrun(folder, config, "ddp", fault=(16, "raise OSError('the disk is gone')"))


def figures(folder, last=20):
    """Every metric of the records up to a step, but times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        f"{key} {record['step']}": value
        for record in records
        for key, value in record.items()
        if record["step"] <= last and key not in ("time", "perf/tokens_per_s")
    }


def test_fsdp_with_a_stop_between_gives_the_numbers_of_one_process(folder, solo, stopped):
    assert figures(folder / "fsdp") == pytest.approx(figures(solo), rel=1e-5)
    ours, theirs = read_summary(folder / "fsdp"), read_summary(solo)
    assert ours is not None
    assert theirs is not None
    assert ours["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-5)
    assert ours["sample/text"] == theirs["sample/text"]
    assert ours["environment"]["ranks"] == 2


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_the_first_alone_speaks(stopped):
    assert stopped.stderr.count("stopped at step 13 of 20; the same command resumes it") == 1
    assert stopped.stdout.count("resumed at step 13 of 20") == 1
    assert stopped.stdout.count("finished: ") == 1
    assert "Traceback" not in stopped.stderr


def test_the_checkpoint_of_two_ranks_has_the_tensors_of_one_and_resumes_in_one(folder, config, solo, stopped):
    shutil.copytree(folder / "fsdp", folder / "alone")
    (folder / "alone" / "summary.json").unlink()
    for later in ("step-00000018", "step-00000020"):
        shutil.rmtree(folder / "alone" / "checkpoints" / later)
    train(config, folder / "alone")
    assert figures(folder / "alone") == pytest.approx(figures(solo), rel=1e-5)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(p / "checkpoints" / "step-00000012" / name) for p in (folder / "fsdp", solo))
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_ddp_goes_on_from_a_checkpoint_of_one_process_with_its_numbers(folder, solo, failed):
    assert figures(folder / "ddp", last=16) == pytest.approx(figures(solo, last=16), rel=1e-5)
    assert "ranks was 1, is 2: not bitwise the same from here on" in failed.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_ranks_give_the_numbers_of_one_process_as_written(folder, config, solo, parallel):
    flags = f"--train.parallel={parallel}", "--train.compile=true"
    done = torchrun(folder, config, f"compiled-{parallel}", *flags, fault=(-1, "pass"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures(folder / f"compiled-{parallel}") == pytest.approx(figures(solo), rel=1e-4)


def test_a_rank_that_fails_says_why_and_ends_all(failed):
    assert failed.returncode == 1
    assert failed.stderr.count("OSError: the disk is gone\n") == 1
    assert "Connection" not in failed.stderr


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Ranks, {"batch_size": 6, "accumulate": 2}, "batch_size 6 in 2 micro-batches does not split .* for 2 ranks"),
        (ShardedRanks, {"optimizer": "muon", "probes": 0}, "'muon' needs whole matrices.* adamw, sgd"),
        (ShardedRanks, {"probes": 3}, "--train.probes=0"),
    ],
)
def test_what_does_not_go_with_ranks_is_refused(kind, changes, message):
    with pytest.raises(UserError, match=message):
        kind(0, 2, store=None).check(build({"train": changes}, "test"))


def test_weights_that_are_single_numbers_are_named_and_refused_under_fsdp():
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=8, context=4, head="sigmoid", activation="swish_beta"), 11)
    with pytest.raises(UserError, match=r"single numbers: blocks\.0\.ffn\.act\.\w+, head\.bias\. "):
        ShardedRanks(0, 2, store=None).place(model, torch.device("cpu"))


def test_ranks_that_nobody_started_are_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert pick_parallel(RunConfig()) == "alone"
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        pick_parallel(build({"train": {"parallel": "fsdp"}}, "test"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_parallel(RunConfig()) == "ddp"


def test_a_study_over_ranks_is_refused_before_anything_is_done(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--out={tmp_path / 'study'}"])
    with pytest.raises(UserError, match="torchrun spreads one run, and this is a study of 5"):
        train_door.main()
    assert not (tmp_path / "study").exists()
