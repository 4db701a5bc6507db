"""A real run, killed with SIGKILL again and again, ends as if it had never been touched."""

import contextlib
import json
import os
import random
import signal
import time

import pytest
from helpers import begin, descendants, records, run_flags, same_weights, trains, until


def leftover(out):
    """The folder that a save is being written to, or was when it died, and since when; None if there is none."""
    for path in (out / "checkpoints").glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile: the save is done
            return path.name, path.stat().st_ctime_ns
    return None


def strike(process, out, draw, seconds, save):
    """Kill a run at a random time of its life or, for `save`, within or just after one of its next saves."""
    if save:
        for _ in range(draw.randint(1, 5)):
            until(process, lambda: not leftover(out))
            until(process, lambda: leftover(out))
        time.sleep(draw.uniform(0, 0.004))
    else:
        end = time.monotonic() + draw.uniform(0, seconds)
        until(process, lambda: time.monotonic() > end)
    process.kill()


@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(corpus, tmp_path, times):
    draw, wanted = random.Random(0), times(5, 50)
    kills, within_save, resumed, run = 0, 0, 0, 0
    began = time.monotonic()
    _, error = begin(corpus, tmp_path / "whole").communicate()
    assert not error
    seconds = time.monotonic() - began
    ended = False
    while not ended:
        out = tmp_path / f"run{run}"
        before = leftover(out)
        process = begin(corpus, out)
        if kills < wanted:
            strike(process, out, draw, seconds, save=kills % 2 == 0)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        if process.returncode:
            kills += 1
            resumed += any((out / "checkpoints").glob("step-*"))
            within_save += leftover(out) not in (None, before)
        else:  # the last run of all, or one that was faster than its killer: another one is begun
            assert records(out) == records(tmp_path / "whole")
            assert same_weights(out, tmp_path / "whole")
            ended = kills == wanted
            run += 1
    print(f"{kills} kills of {run} runs: {within_save} within a save, {resumed} with a checkpoint to go on from")
    assert resumed >= kills // 2


SIX = ["relu", "gelu", "silu", "tanh", "sigmoid", "swiglu"]


@pytest.mark.timeout(3600)
def test_a_study_killed_at_random_moments_ends_as_one_that_was_not(long_only, call, corpus, tmp_path):
    """One kill of a study is in test_executor."""
    for name in SIX:  # the truth: each run alone, in this process
        flags = [*run_flags(corpus), "--train.tokens=6400", f"--model.activation={name}"]
        code, said = call("train", "configs/single.toml", *flags, f"--out={tmp_path / 'alone' / name}")
        assert code == 0, said
    draw, wanted = random.Random(0), 10
    kills, alone, study = 0, 0, 0
    while kills < wanted or any((tmp_path / f"study{study}").glob("*")):
        out = tmp_path / f"study{study}"
        process = begin(corpus, out, "--train.tokens=6400", f"--model.activation={json.dumps(SIX)}")
        if kills < wanted:
            begun = SIX[draw.randrange(len(SIX))]
            until(process, lambda out=out, begun=begun: trains(out / begun))
            end = time.monotonic() + draw.uniform(0, 1)
            until(process, lambda end=end: time.monotonic() > end)
            below = descendants(process.pid)
            process.kill()
            if draw.random() < 0.5:  # its runs too, or they save and end by themselves
                for pid in below:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            else:
                alone += 1
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        if process.returncode:
            kills += 1
        else:
            for name in SIX:
                assert records(out / name) == records(tmp_path / "alone" / name)
                assert same_weights(out / name, tmp_path / "alone" / name)
            study += 1
    print(f"{kills} kills of {study} studies of {len(SIX)} runs, {alone} of them of the study alone")
