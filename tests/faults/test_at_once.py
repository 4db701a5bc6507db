"""Two commands for one run, and equal commands in two processes."""

import os

from helpers import begin, records, run_flags, same_weights, trains, until


def test_the_second_of_two_is_told_who_writes_the_run_and_both_runs_are_equal(corpus, tmp_path, call):
    out = tmp_path / "run"
    process = begin(corpus, out)
    until(process, lambda: trains(out))
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={out}")
    assert code == 2
    assert f"{out} is being written by process {process.pid} on {os.uname().nodename} since 20" in said
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert not (out / ".holder").exists()
    code, said = call("train", "configs/single.toml", *run_flags(corpus), f"--out={tmp_path / 'again'}")
    assert code == 0, said
    assert records(out) == records(tmp_path / "again")
    assert same_weights(out, tmp_path / "again")
