"""A real run that is killed with SIGKILL again and again ends as if it had never been touched."""

import contextlib
import random
import signal
import time

import pytest
from helpers import begin, records, run_flags, same_weights, until


def save_under_way(out):
    """The folder that a checkpoint is being written to, or was when the run died, and since when; None without one."""
    for path in (out / "checkpoints").glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it has just become the checkpoint
            return path.name, path.stat().st_ctime_ns
    return None


def kill_within_a_save(process, out, draw):
    """Kill a run within one of its next saves, or just after it."""
    for _ in range(draw.randint(1, 5)):
        until(process, lambda: not save_under_way(out))
        until(process, lambda: save_under_way(out))
    time.sleep(draw.uniform(0, 0.004))
    process.kill()


def kill_at_a_random_time(process, seconds, draw):
    """Kill a run that would take so many seconds."""
    end = time.monotonic() + draw.uniform(0, seconds)
    until(process, lambda: time.monotonic() > end)
    process.kill()


@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(corpus, tmp_path, call, times):
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={tmp_path / 'whole'}")
    assert code == 0, said
    draw, wanted, seconds = random.Random(0), times(2, 20), 10.0
    kills, within_a_save, resumed, run = 0, 0, 0, 0
    ended = False
    while not ended:
        out = tmp_path / f"run{run}"
        before, started = save_under_way(out), time.monotonic()
        process = begin(corpus, out)
        if kills < wanted and kills % 2 == 0:
            kill_within_a_save(process, out, draw)
        elif kills < wanted:
            kill_at_a_random_time(process, seconds, draw)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        if process.returncode:
            kills += 1
            resumed += any((out / "checkpoints").glob("step-*"))
            within_a_save += save_under_way(out) not in (None, before)
        else:  # the last run of all, or one that was faster than the signal: then another one begins
            assert records(out) == records(tmp_path / "whole")
            assert same_weights(out, tmp_path / "whole")
            seconds = time.monotonic() - started
            ended = kills == wanted
            run += 1
    print(f"{kills} kills of {run} runs: {within_a_save} within a save, {resumed} with a checkpoint to resume from")
    assert resumed >= kills // 2
