"""Two commands for one run."""

import os

from helpers import begin, run_flags, trains, until


def test_the_second_of_two_is_told_who_writes_the_run(corpus, tmp_path, call):
    out = tmp_path / "run"
    process = begin(corpus, out)
    until(process, lambda: trains(out))
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={out}")
    assert code == 2
    assert f"{out} is being written by process {process.pid} on {os.uname().nodename} since 20" in said
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert not (out / ".holder").exists()
