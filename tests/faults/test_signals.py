"""Real signals to real processes: the first saves at the next step, the second ends at once."""

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import begin, descendants, newest, records, run_flags, same_weights, trains, until

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.timeout(1200)
def test_a_signal_saves_at_the_next_step_and_nothing_is_lost(call, corpus, tmp_path, times):
    whole = tmp_path / "whole"
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={whole}")
    assert code == 0, said
    draw, stopped = random.Random(0), 0
    while stopped < times(1, 20):
        out, signum = tmp_path / f"run{stopped}", [signal.SIGTERM, signal.SIGINT][stopped % 2]
        process = begin(corpus, out)
        until(process, lambda out=out: trains(out))
        time.sleep(draw.uniform(0, 1))
        process.send_signal(signum)
        _, error = process.communicate()
        if process.returncode == 0:  # it was faster than the signal
            continue
        assert process.returncode == CODES[signum], error
        assert "Traceback" not in error
        path = newest(out / "checkpoints")
        assert path is not None
        step = int(path.name.removeprefix("step-"))
        assert f"stopped at step {step} of 250; the same command resumes it" in error
        assert records(out) == [record for record in records(whole) if record["step"] <= step]
        code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={out}")
        assert code == 0, said
        assert f"resumed at step {step} of 250" in said
        assert records(out) == records(whole)
        assert same_weights(out, whole)
        stopped += 1


def test_ctrl_c_while_a_study_starts_its_first_process_is_not_lost(corpus, tmp_path):
    process = begin(corpus, tmp_path / "study", "--model.activation=['relu', 'gelu']")

    def starts():  # the server that loads torch for all runs
        time.sleep(0.05)  # a look through all processes takes time from the command
        for pid in descendants(process.pid):
            with suppress(OSError):  # it has ended
                if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False

    until(process, starts)
    time.sleep(0.1)  # the command goes on to wait for the server, which takes a second
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert "the same command resumes it" in error


def test_a_second_signal_ends_at_once(corpus, tmp_path):
    process = begin(corpus, tmp_path / "run", "--train.checkpoint_every=100000")
    until(process, lambda: trains(tmp_path / "run"))
    process.send_signal(signal.SIGSTOP)
    for signum in (signal.SIGINT, signal.SIGTERM):  # both arrive when it goes on, with no step between them
        process.send_signal(signum)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 143
    assert not (tmp_path / "run" / "checkpoints").exists()
