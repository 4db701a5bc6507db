"""A real run, killed with SIGKILL again and again, ends as if it had never been touched."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from test_loop import records, same_weights

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--model.n_layer=2", "--model.n_head=2", "--model.d_model=24", "--model.context=16", "--train.batch_size=4"]
OFTEN = ["--train.log_every=5", "--train.eval_every=50", "--train.checkpoint_every=10", "--train.tokens=25600"]


def begin(corpus, out):
    flags = [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *SMALL, *OFTEN, "--train.threads=1", f"--out={out}"]
    command = [sys.executable, "train.py", "configs/single.toml", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(process, condition):
    """Wait for a condition while a process runs."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def saving(out):
    return any(name.startswith(".writing-") for name in (os.listdir(out) if out.is_dir() else ()))


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(corpus, tmp_path, times):
    draw, kills, within_save, resumed, part = random.Random(0), times(5, 50), 0, 0, 0
    began = time.monotonic()
    assert begin(corpus, tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began

    done = 0
    while True:  # run after run, until there were enough kills and the last run has ended
        out = tmp_path / f"run{part}"
        checkpoints = out / "checkpoints"
        process = begin(corpus, out)
        if done < kills:
            if done % 2:  # any time, from the start of the process on
                end = time.monotonic() + draw.uniform(0, seconds)
                until(process, lambda end=end: time.monotonic() > end)
            else:  # within a save, or just after it
                for _ in range(draw.randint(1, 8)):
                    until(process, lambda: not saving(checkpoints))
                    until(process, lambda: saving(checkpoints))
                time.sleep(draw.uniform(0, 0.004))
            if process.poll() is None:
                process.kill()
                done += 1
        _, error = process.communicate()
        within_save += saving(checkpoints)
        resumed += checkpoints.is_dir() and any(checkpoints.glob("step-*")) and process.returncode != 0
        if process.returncode == 0:
            assert records(out) == records(tmp_path / "whole")
            assert same_weights(out, tmp_path / "whole")
            if done == kills:
                break
            part += 1
        else:
            assert process.returncode == -9, error
    print(f"{done} kills, {within_save} within a save, {resumed} after a checkpoint, {part + 1} runs")
    assert resumed >= kills // 2
