"""A real run, killed with SIGKILL again and again, ends as if it had never been touched."""

import contextlib
import random
import signal
import time

import pytest
from processes import begin, until
from test_loop import records, same_weights


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
