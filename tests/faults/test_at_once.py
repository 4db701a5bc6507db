"""Two commands for one run, several for one study, and processes that need one corpus."""

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from helpers import ROOT, begin, descendants, records, run_flags, same_weights, trains, until


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


# Each run prints the number of every batch that it trains on. In two steps it waits, until the file go-<step> is there
# or it is asked to stop. Tuning runs end between these steps.
HOLD = """
import os, pathlib, signal, time, torch
from model.activations import pointwise
from training import step
ACTIVATIONS = {"first": pointwise(torch.relu), "second": pointwise(torch.tanh)}
whole, folder = step.train_batch, pathlib.Path("FOLDER")
def train_batch(tokens_N, seed, at, *shape):
    if at in (20, 70):
        (folder / f"held-{at}-{os.getpid()}").touch()
        while not (folder / f"go-{at}").exists() and not signal.getsignal(signal.SIGINT).__self__.signum:
            time.sleep(0.02)
    print("batch", at, flush=True)
    return whole(tokens_N, seed, at, *shape)
step.train_batch = train_batch
"""


@pytest.fixture
def start(corpus, tmp_path):
    """Return a function that starts a command for a study of two tuned arms, on one core, in a folder."""
    plugin = tmp_path / "hold.py"
    plugin.write_text(HOLD.replace("FOLDER", str(tmp_path)))
    cores = os.sched_getaffinity(0)
    turns = itertools.cycle(cores)
    flags = [f"--plugin={plugin}", "--model.activation=['first', 'second']", "--study.lr=[4e-3, 16e-3, 1e30]"]
    flags += ["--train.tokens=6400", "--model.n_layer=1", "--model.d_model=16", "--train.seed=[1, 2]"]

    def begin_on_one_core(folder):
        os.sched_setaffinity(0, {next(turns)})
        try:
            return begin(corpus, folder, *flags)
        finally:
            os.sched_setaffinity(0, cores)

    return begin_on_one_core


def runs_of(study):
    return sorted(path.parent.relative_to(study) for path in study.rglob("config.toml"))


def table(study):
    """The rows of results.csv without what is measured in seconds."""
    with (study / "results.csv").open() as file:
        rows = [*csv.DictReader(file)]
    return [{key: row[key] for key in row if not key.startswith(("perf/", "arm/tokens_per_s"))} for row in rows]


@pytest.mark.timeout(600)
def test_three_commands_train_a_study_as_one_does_though_one_is_killed_and_one_stopped(start, tmp_path):
    study, alone = tmp_path / "three" / "study", tmp_path / "one" / "study"
    killed, stopped, last = (start(study) for _ in range(3))  # on one core, each trains one run at a time
    until(last, lambda: len([*tmp_path.glob("held-20-*")]) == 3)
    killed.send_signal(signal.SIGSTOP)  # it must not see its runs end
    for pid in [*descendants(killed.pid), killed.pid]:  # as when a machine is lost
        with suppress(ProcessLookupError):  # some end with those before them
            os.kill(pid, signal.SIGKILL)
    killed.communicate()
    (tmp_path / "go-20").touch()
    until(last, lambda: len([*tmp_path.glob("held-70-*")]) == 2)
    stopped.send_signal(signal.SIGINT)
    _, error = stopped.communicate()
    assert stopped.returncode == 130, error
    assert "stopped; the same command resumes it" in error
    (tmp_path / "go-70").touch()
    _, error = last.communicate()
    assert last.returncode == 0, error

    one = start(alone)
    _, error = one.communicate()
    assert one.returncode == 0, error
    assert runs_of(study) == runs_of(alone)
    resumed = 0
    for run in runs_of(study):
        log = (study / run / "log.txt").read_text()
        batches = [int(number) for number in re.findall(r"^batch (\d+)$", log, re.MULTILINE)]
        assert batches == [*range(len(batches))]  # each step was taken once, also by the runs at 1e30, which fail
        assert records(study / run) == records(alone / run)
        if "lr1e+30" not in run.name:
            assert len(batches) in (50, 100)
            assert same_weights(study / run, alone / run)
        resumed += "resumed at step" in log
    assert resumed == 2
    assert table(study) == table(alone)
    assert (study / "report.html").exists()


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
