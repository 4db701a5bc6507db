"""The code needs nothing that only Unix has: each module imports, and a run trains, without those names."""

import multiprocessing
import subprocess
import sys

import tomli_w
from helpers import ROOT, tiny_config

from study.run.protocol import run_study
from training.config import tree

# Libraries ask sys.platform what they run on, so only modules of this project are imported without the names.
WITHOUT_UNIX = """
import importlib, os, pkgutil, signal, sys, tomllib
from pathlib import Path

ROOMS = {"data", "model", "training", "study", "errors", "files", "train", "eval", "sample"}
names = [m.name for m in pkgutil.walk_packages([os.getcwd()]) if m.name.partition(".")[0] in ROOMS]
for name in names:
    importlib.import_module(name)
for name in names:
    del sys.modules[name]
# rustbpe has no wheel for some systems, and only a bpe tokenizer needs it.
for module in ("fcntl", "grp", "pty", "pwd", "resource", "rustbpe", "termios", "tty"):
    sys.modules[module] = None
for module, absent in (
    (os, "fork forkpty getloadavg getpgid getuid geteuid killpg mkfifo nice sched_getaffinity setpgid setsid sysconf"),
    (os, "sysconf_names uname wait4 O_DIRECTORY"),
    (signal, "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 pthread_sigmask"),
):
    for name in absent.split():
        vars(module).pop(name, None)
for name in names:
    importlib.import_module(name)
print(len(names), "modules")

from training.config import build
from training.loop import train

print(train(build(tomllib.loads(sys.argv[1]), "test"), Path(sys.argv[2]))["status"])
"""


def test_every_module_imports_and_a_run_trains_without_the_names_that_windows_lacks(corpus, tmp_path):
    config = tomli_w.dumps(tree(tiny_config(corpus)))
    command = [sys.executable, "-c", WITHOUT_UNIX, config, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = [path for room in ("data", "model", "training", "study") for path in (ROOT / room).rglob("*.py")]
    assert f"{len(modules) + 5} modules" in done.stdout  # with errors.py, files.py and the three doors
    assert done.stdout.endswith("finished\n")


def test_a_study_trains_where_no_process_can_be_forked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    plan = tree(tiny())
    plan["model"]["activation"] = ["relu", "gelu"]
    assert run_study(plan, tmp_path / "study") == []
    assert len(list((tmp_path / "study").glob("*/summary.json"))) == 2
