"""wandb missing, silent, killed or without room: the run ends all the same, soon, and metrics.jsonl is whole.

Each fault is done to a real process and to wandb itself. The long form prints the delays.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import ROOT, begin, descendants, records, remount, run_flags, trains, until

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = 60


@pytest.fixture
def whole(call, corpus, tmp_path):
    """The records of the same run without wandb."""
    code, said = call("train", "configs/single.toml", *flags(corpus), f"--out={tmp_path / 'whole'}")
    assert code == 0, said
    return records(tmp_path / "whole")


@pytest.fixture
def silent():
    """The address of a server that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def flags(corpus):
    return [*run_flags(corpus), f"--train.tokens={STEPS * 64}"]


def command(corpus, out):
    return [sys.executable, "train.py", "configs/single.toml", *flags(corpus), f"--out={out}"]


def finish(corpus, out, whole, **env):
    """Run to the end with this environment; return what was said and how long it took."""
    environment = os.environ | {"WANDB_MODE": ""} | env
    began = time.monotonic()
    done = subprocess.run(command(corpus, out), cwd=ROOT, capture_output=True, text=True, env=environment)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert records(out) == whole
    return done.stdout + done.stderr, seconds


def test_wandb_missing(long_only, whole, corpus, tmp_path, wandb_home):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "wandb.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')\n"
    )
    said, _ = finish(corpus, tmp_path / "run", whole, PYTHONPATH=str(tmp_path / "stub"))
    assert said.count("warning: wandb is off for this run (ModuleNotFoundError") == 1


def test_no_login_on_a_terminal_asks_nothing(long_only, whole, corpus, tmp_path, wandb_home):
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        command(corpus, tmp_path / "run"),
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(terminal)
    printed = b""
    with contextlib.suppress(OSError), open(screen, "rb", buffering=0) as file:  # OSError: the process has ended
        while chunk := file.read(1 << 16):
            printed += chunk
    assert process.wait() == 0, printed.decode()
    assert b"wandb: offline; to upload it later" in printed
    assert records(tmp_path / "run") == whole


def test_its_process_killed_in_the_midst(whole, corpus, tmp_path, wandb_home, times):
    for n in range(times(1, 5)):
        out = tmp_path / f"run{n}"
        process = begin(corpus, out, f"--train.tokens={STEPS * 64}", WANDB_MODE="offline")
        until(process, lambda out=out: trains(out))
        killed = 0
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        assert killed
        _, error = process.communicate()
        assert process.returncode == 0, error
        assert "Exception ignored" not in error  # wandb looks for its process when this one ends
        assert records(out) == whole


def test_its_folder_read_only(disk, call, whole, corpus, tmp_path, wandb_home, monkeypatch):
    run, mounted = tmp_path / "run", disk("64k")
    folder = run / "wandb"
    shutil.copytree(tmp_path / "whole", run)  # as if stopped before its end
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    folder.mkdir()
    subprocess.run(["mount", "--bind", str(mounted), str(folder)], check=True)
    try:
        remount(folder, "bind,ro")
        monkeypatch.setenv("WANDB_MODE", "offline")
        code, said = call("train", "configs/single.toml", *flags(corpus), f"--out={run}")
        assert code == 0, said
        assert "wandb" in said
        assert records(run) == whole
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["no login", "a server that is not there", "a server that never answers"])
def test_no_login_or_no_network(long_only, whole, corpus, tmp_path, wandb_home, silent, kind):
    env = {"no login": {}, "a server that never answers": {"WANDB_BASE_URL": silent}}
    env["a server that is not there"] = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    key = {} if kind == "no login" else {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
    _, plain = finish(corpus, tmp_path / "plain", whole, WANDB_MODE="disabled")
    said, seconds = finish(corpus, tmp_path / "run", whole, **key, **env[kind])
    print(f"{kind}: {seconds - plain:.1f} s more than without wandb")
    assert re.search(r"wandb: offline; to upload it later", said), said


def test_the_runs_of_a_study_share_no_id_under_a_sweep_s_agent(corpus, tmp_path, wandb_home):
    flags = [f"--train.tokens={STEPS * 64}", '--model.activation=["relu", "gelu"]']
    process = begin(corpus, tmp_path / "study", *flags, WANDB_MODE="offline", WANDB_RUN_ID="of-the-agent")
    _, error = process.communicate()
    assert process.returncode == 0, error
    ids = [path.name.rpartition("-")[2] for path in (tmp_path / "study").glob("*/wandb/offline-run-*")]
    assert len(ids) == len(set(ids)) == 2
    assert "agent" not in ids
