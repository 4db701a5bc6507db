"""The three commands as a user types them, in processes of their own."""

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import errors

ROOT = Path(__file__).parents[2]


def door(*arguments, **env):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


@pytest.fixture
def flags(corpus):
    small = ["--model.n_layer=1", "--model.n_head=2", "--model.d_model=24", "--model.context=16"]
    return [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *small, "--train.tokens=6400", "--train.threads=1"]


@pytest.fixture
def run(flags, tmp_path):
    done = door("train.py", "configs/single.toml", *flags, f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "run"


def test_train_evaluate_and_sample_one_run(run, flags):
    summary = json.loads((run / "summary.json").read_text())
    scored = door("eval.py", run)
    assert f"val   loss {summary['val/loss']:.4f} nats/token" in scored.stdout
    assert f"{summary['test/bits_per_byte']:.4f} bits/byte" in scored.stdout
    again = door("train.py", "configs/single.toml", *flags, f"--out={run}")
    assert again.stdout.startswith("finished")
    one, two, other = (door("sample.py", run, "--prompt=the king", f"--seed={s}").stdout for s in (1, 1, 2))
    assert one == two != other
    assert one.startswith("the king")
    own = door("sample.py", run, "--tokens=300")  # what the run wrote itself when it ended
    assert own.stdout.encode(errors="replace").decode().strip() == summary["sample/text"].strip()


@pytest.mark.parametrize("prompt", ["", "x" * 500, "日本語 \U0001f600", "the"])
def test_any_prompt_can_be_continued(run, prompt):
    done = door("sample.py", run, f"--prompt={prompt}", "--tokens=40", "--samples=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(prompt) >= 2


def test_more_text_than_memory_is_refused(run):
    for tokens in (10**14, 10**18):
        done = door("sample.py", run, "--device=cpu", f"--tokens={tokens}")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: not enough memory (")


def test_what_stdout_cannot_encode_is_replaced(run):
    done = door("eval.py", run.parent, PYTHONIOENCODING="ascii")  # the folder of the run, as a study of one
    assert done.returncode == 0, done.stderr
    assert " ? bytes" in done.stdout  # a dot in the table's first line
    assert (run.parent / "report.html").exists()
    assert door("sample.py", run, "--prompt=日本", "--tokens=3", PYTHONIOENCODING="ascii").stdout.startswith("??")


def test_a_prompt_that_begins_with_a_dash_is_given_with_an_equals_sign(run):
    done = door("sample.py", run, "--prompt=-x y", "--tokens=3")
    assert done.stdout.startswith("-x y"), done.stderr
    assert '--prompt="-x y"' in " ".join(door("sample.py", "--help", COLUMNS="200").stdout.split())


def unread(*arguments):
    """Return the exit code and the errors of a door whose output nobody reads, as after `| head`."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    return process.returncode, said


def test_that_nobody_reads_the_output_is_said_and_the_run_goes_on_with_the_same_command(flags, tmp_path):
    command = ["train.py", "configs/single.toml", *flags, f"--out={tmp_path / 'run'}"]
    gone = "stopped: nobody reads the output any more, as after | head. The same command resumes a run or study.\n"
    assert unread(*command) == (1, gone)
    assert door(*command).returncode == 0
    assert unread("sample.py", tmp_path / "run", "--tokens=3") == (1, gone)  # what is written last


def test_a_plugin_adds_an_activation_and_is_needed_to_read_its_runs(flags, tmp_path):
    plugin = tmp_path / "acts.py"
    plugin.write_text(
        "import torch\nfrom model.activations import Activation, pointwise\n"
        "ACTIVATIONS = {'sine': Activation(pointwise(torch.sin))}\n"
    )
    arguments = ("configs/single.toml", *flags, "--model.activation=sine", f"--out={tmp_path / 'run'}")
    assert door("train.py", *arguments).returncode == 2
    assert not (tmp_path / "run").exists()
    done = door("train.py", *arguments, f"--plugin={plugin}")
    assert done.returncode == 0, done.stderr
    without = door("sample.py", tmp_path / "run")
    assert without.returncode == 2
    assert "--plugin" in without.stderr
    assert door("sample.py", tmp_path / "run", f"--plugin={plugin}").returncode == 0
    compared = door("eval.py", tmp_path, f"--plugin={plugin}")  # the folder of the run, as a study of one
    assert compared.returncode == 0, compared.stderr
    assert f"--plugin={plugin}" in (tmp_path / "report.html").read_text(encoding="utf-8")


MISTAKES = {
    "eval.py": "name a run",
    "eval.py nowhere": "nowhere",
    "eval.py configs": "configs",
    "eval.py configs --device=cpu": "--device goes with one run",
    "eval.py configs --data.corpus=stdlib": "--data.corpus goes with one run",
    "eval.py configs --data.column=body": "--data.column goes with --data.corpus",
    "sample.py configs": "not a run folder",
    "sample.py nowhere --temperature=-1": "--temperature -1.0",
    "sample.py nowhere --tokens=0": "--tokens 0",
    f"sample.py nowhere --tokens={10**23}": "--tokens 1000",
    "sample.py nowhere --top-p=2": "--top-p 2.0",
    f"train.py --train.batch_size={10**20}": "train.batch_size",
    f"sample.py nowhere --seed={2**64}": f"--seed {2**64}",
    "sample.py nowhere --plugin=nowhere.py": "no such file",
}


LIMITS = {
    "eval.py " + "x" * 300: "longer than the file system allows",
}


@pytest.mark.parametrize("command", LIMITS, ids=lambda command: command[:40])
def test_what_the_machine_refuses_is_said_without_a_traceback(command, flags, tmp_path):
    name, *given = command.split()
    done = door(name, *(["--out", tmp_path / "out", *flags] if name == "train.py" else []), *given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert LIMITS[command] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_cannot_be_written_is_said_without_a_traceback(capsys):
    assert errors.door(lambda: len("st\udcfcdy".encode())) == 2
    assert capsys.readouterr().err == "error: '\\udcfc' in a name is not UTF-8. Set PYTHONUTF8=1.\n"


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_ends_with_code_2_and_a_hint_before_anything_is_done(command, cache, tmp_path):
    fresh = [f"--out={tmp_path / 'run'}"] if command.startswith("train.py") and "--out" not in command else []
    done = door(*command.split(), *fresh)
    assert done.returncode == 2, done.stdout + done.stderr
    assert MISTAKES[command] in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(cache.rglob("*.whl"))  # nothing was fetched
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train.py", "eval.py", "sample.py"])
def test_help_documents_and_imports_nothing_slow(name):
    done = door("-X", "importtime", name, "--help")
    assert done.returncode == 0
    for slow in ("torch", "wandb", "datasets", "plotly", "matplotlib", "pandas", "scipy", "transformers"):
        assert f"| {slow}\n" not in done.stderr


@pytest.mark.parametrize("flag", ["--reference=relu", "--out=report.html"])
def test_scoring_one_run_refuses_what_belongs_to_comparing(tmp_path, flag):
    (tmp_path / "config.toml").touch()
    done = door("eval.py", tmp_path, flag)
    assert done.returncode == 2
    assert "--reference and --out go with a study or several runs" in done.stderr


def on_a_terminal(*arguments, **env):
    """Return what a door prints on a terminal."""
    screen, terminal = pty.openpty()
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=terminal, stderr=terminal, env=os.environ | env) as process:
        os.close(terminal)
        printed = b""
        with contextlib.suppress(OSError), open(screen, "rb", buffering=0) as file:  # OSError: the process has ended
            while chunk := file.read(1 << 16):
                printed += chunk
    assert process.returncode in (0, 2)
    return printed.decode()


@pytest.mark.parametrize(
    "arguments", ["train.py --help", "train.py --modle.lr=1", "eval.py --help", "sample.py --help"]
)
def test_no_color_is_honoured(arguments):
    colour = "\x1b["
    assert colour in on_a_terminal(*arguments.split(), TERM="xterm", NO_COLOR="")
    assert colour not in on_a_terminal(*arguments.split(), TERM="xterm", NO_COLOR="1")


def test_numbers_that_are_no_run(tmp_path):
    (tmp_path / "config.toml").write_text("[model]\nn_layer = 'many'")
    done = door("sample.py", tmp_path)
    assert done.returncode == 2
    assert "model.n_layer" in done.stderr


@pytest.mark.parametrize("out", [None, io.StringIO()], ids=["closed", "replaced"])
def test_a_door_needs_no_stdout_of_a_terminal(monkeypatch, out):
    monkeypatch.setattr(sys, "stdout", out)
    assert errors.door(lambda: print("said")) == 0
