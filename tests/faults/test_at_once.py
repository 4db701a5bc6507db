"""Two commands for one run, and processes that need one corpus."""

import os
import subprocess
import sys

from helpers import ROOT, begin, run_flags, trains, until


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


PREPARE = """
import sys
from data.config import DataConfig
from data.dataset import prepare
data = prepare(DataConfig(sys.argv[1], "bytes"))
print(data.fingerprint, data.folder.stat().st_ino)  # a folder that is made anew is another one
"""


def test_processes_that_need_one_corpus_at_once_make_its_tokens_once(corpus, times):
    command = [sys.executable, "-c", PREPARE, str(corpus)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(times(2, 16))]
    said = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * len(running)
    assert len(said) == 1
