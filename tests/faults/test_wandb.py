"""wandb killed, silent, or without room: the run ends all the same, soon, and metrics.jsonl is whole.

Each fault is done to a real process and to wandb itself. With --long the delays are printed.
"""

import contextlib
import os
import pty
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
ACTIVATIONS = '--model.activation=["relu", "gelu"]'


def flags(corpus):
    """The flags of a run of 60 steps."""
    return [*run_flags(corpus), f"--train.tokens={STEPS * 64}"]


@pytest.fixture
def whole(call, corpus, tmp_path):
    """The records of the same run without wandb."""
    code, said = call("train", "configs/single.toml", *flags(corpus), f"--out={tmp_path / 'whole'}")
    assert code == 0, said
    return records(tmp_path / "whole")


def run_to_end(corpus, out, whole, **env):
    """Run to the end on a terminal, with this environment; return what was printed and how long it took."""
    environment = os.environ | {"WANDB_MODE": "", "TERM": "xterm"} | env
    command = [sys.executable, "train.py", "configs/single.toml", *flags(corpus), f"--out={out}"]
    screen, terminal = pty.openpty()
    started, printed = time.monotonic(), b""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    with contextlib.suppress(OSError), open(screen, "rb", buffering=0) as file:  # OSError: the process has ended
        while chunk := file.read(1 << 16):
            printed += chunk
    said = printed.decode()
    assert process.wait() == 0, said
    assert "Traceback" not in said
    assert records(out) == whole
    return said, time.monotonic() - started


def test_its_process_is_killed_within_the_run(whole, corpus, tmp_path, wandb_home, times):
    for n in range(times(1, 5)):
        out = tmp_path / f"run{n}"
        process = begin(corpus, out, f"--train.tokens={STEPS * 64}", WANDB_MODE="offline")
        until(process, lambda out=out: trains(out))
        below = descendants(process.pid)
        assert below
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode == 0, error
        assert "Exception ignored" not in error  # wandb looks for its process when this one ends
        assert records(out) == whole


def test_its_folder_is_read_only(disk, call, whole, corpus, tmp_path, wandb_home, monkeypatch):
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


def test_no_network_asks_nothing_and_delays_little(pytestconfig, whole, corpus, tmp_path, wandb_home):
    if not pytestconfig.getoption("--long"):
        pytest.skip("only with --long: it waits")
    _, plain = run_to_end(corpus, tmp_path / "plain", whole, WANDB_MODE="disabled")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"no login": None, "no server": 9, "a silent server": silent.getsockname()[1]}
        for kind, port in ports.items():
            online = {"WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
            said, seconds = run_to_end(corpus, tmp_path / kind, whole, **(online if port else {}))
            print(f"{kind}: {seconds - plain:.1f} s more than without wandb")
            assert "to upload it later: wandb sync" in said, said
            assert seconds - plain < 60


def test_the_runs_of_a_study_share_no_id_under_a_sweep_s_agent(call, corpus, tmp_path, wandb_home, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, said = call("train", "configs/single.toml", *flags(corpus), ACTIVATIONS, f"--out={tmp_path / 'study'}")
    assert code == 0, said
    ids = [path.name.rpartition("-")[2] for path in (tmp_path / "study").glob("*/wandb/offline-run-*")]
    assert len(ids) == len(set(ids)) == 2
    assert "agent" not in ids
