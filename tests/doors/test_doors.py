"""The three commands as a user types them: in this process, and in one of their own where the process is the point."""

import contextlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys

import pytest
from helpers import GELU, ROOT, plan, shifted, write_run, write_study

import errors


def door(*arguments, **env):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


@pytest.fixture
def flags(corpus):
    small = ["--model.n_layer=1", "--model.n_head=2", "--model.d_model=24", "--model.context=16"]
    return [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *small, "--train.tokens=6400", "--train.threads=1"]


@pytest.fixture
def run(flags, tmp_path, call):
    code, said = call("train", "configs/single.toml", *flags, f"--out={tmp_path / 'run'}")
    assert code == 0, said
    return tmp_path / "run"


def test_train_evaluate_and_sample_one_run(run, flags, call):
    summary = json.loads((run / "summary.json").read_text())
    code, scored = call("eval", run)
    assert code == 0
    assert f"val   loss {summary['val/loss']:.4f} nats/token" in scored
    assert f"{summary['test/bits_per_byte']:.4f} bits/byte" in scored
    again = door("train.py", "configs/single.toml", *flags, f"--out={run}")
    assert again.stdout.startswith("finished")
    one, two, other = (call("sample", run, "--prompt=the king", f"--seed={seed}")[1] for seed in (1, 1, 2))
    assert one == two != other
    assert one.startswith("the king")
    own = door("sample.py", run, "--tokens=300")  # what the run wrote itself when it ended
    assert own.stdout.encode(errors="replace").decode().strip() == summary["sample/text"].strip()


def test_any_prompt_can_be_continued_and_more_text_than_memory_is_refused(run, call):
    for prompt in ("", "x" * 500, "日本語 \U0001f600", "the", "-x y"):
        code, said = call("sample", run, f"--prompt={prompt}", "--tokens=40", "--samples=2")
        assert code == 0, said
        assert said.startswith(prompt)
        assert said.count(prompt) >= 2
    for tokens in (10**14, 10**18):
        code, said = call("sample", run, "--device=cpu", f"--tokens={tokens}")
        assert code == 2, said
        assert said.startswith("error: not enough memory (")


def test_what_stdout_cannot_encode_is_replaced(run):
    done = door("eval.py", run.parent, PYTHONIOENCODING="ascii")  # the folder of the run, as a study of one
    assert done.returncode == 0, done.stderr
    assert " ? bytes" in done.stdout  # a dot in the scope
    assert (run.parent / "report.html").exists()
    assert door("sample.py", run, "--prompt=日本", "--tokens=3", PYTHONIOENCODING="ascii").stdout.startswith("??")


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
        error = process.stderr.read()
    return process.returncode, error


def test_that_nobody_reads_the_output_ends_a_command_without_a_traceback(flags, tmp_path):
    command = ["train.py", "configs/single.toml", *flags, f"--out={tmp_path / 'run'}"]
    code, error = unread(*command)
    assert code == 1
    assert "after | head" in error
    assert error.count("\n") == 1
    assert door(*command).returncode == 0  # the same command goes on
    assert unread("sample.py", tmp_path / "run", "--tokens=3") == (1, error)  # what is written last


def test_a_study_is_mirrored_in_wandb_once_it_is_trained_and_not_when_it_is_compared(
    flags, tmp_path, call, wandb_home, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    study = tmp_path / "study"
    two = '--model.activation=["relu", "gelu"]'
    command = ("train", "configs/single.toml", *flags, two, "--wandb.project=mine", f"--out={study}")
    code, said = call(*command)
    assert code == 0, said
    mirrors = list(study.glob("wandb/offline-run-*"))
    assert len(mirrors) == 1
    assert said.count("wandb sync") == 1  # and not for each batch of runs
    assert f"since WANDB_MODE=offline; to upload it later: wandb sync {study}/*/wandb/offline-run-*" in said
    for reader in (("eval", study), command):
        code, said = call(*reader)
        assert code == 0, said
        assert "wandb" not in said
        assert list(study.glob("wandb/offline-run-*")) == mirrors
    shutil.rmtree(study / "wandb")  # as if wandb had been off
    code, said = call(*command)
    assert code == 0, said
    assert len(list(study.glob("wandb/offline-run-*"))) == 1


def test_a_plugin_that_fails_in_training_is_named_by_file_and_line(flags, tmp_path, registry, call):
    plugin = tmp_path / "acts.py"
    plugin.write_text(
        "import torch\nfrom model.activations import pointwise\ncalls = []\n"
        "def formula(u):\n    calls.append(1)\n    if len(calls) > 20:\n"
        "        u = u @ torch.ones(7)\n    return u * 2\n"
        "ACTIVATIONS = {'twice': pointwise(formula)}\n"
    )
    given = ("configs/single.toml", *flags, "--model.activation=twice", f"--out={tmp_path / 'run'}")
    code, said = call("train", *given, f"--plugin={plugin}")
    assert (code, f"the plugin failed in {plugin}, line 7: RuntimeError: " in said) == (2, True), said


def test_samples_say_what_is_missing(flags, tmp_path, call):
    study = tmp_path / "study"
    assert call("train", "configs/single.toml", *flags, "--train.seed=[0]", f"--out={study}")[0] == 0
    code, said = call("sample", study)
    assert (code, f"is a study. Name one of its runs: {study / 'seed0'}." in said) == (2, True), said
    shutil.rmtree(study / "seed0" / "checkpoints")
    code, said = call("sample", study / "seed0")
    assert (code, "has finished, but its checkpoints are gone" in said) == (2, True), said


MISTAKES = {
    "train.py configs\\single.toml": "Did you mean configs/single.toml?",
    "eval.py": "name a run",
    "eval.py nowhere": "nowhere",
    "eval.py nowhere --export=hf": "nowhere is not a run folder",
    "eval.py configs": "configs",
    "sample.py configs": "not a run folder",
    "sample.py nowhere --temperature=-1": "--temperature=-1.0",
    "sample.py nowhere --tokens=0": "--tokens=0",
    f"sample.py nowhere --tokens={10**23}": "--tokens=1000",
    "sample.py nowhere --top-p=2": "--top_p=2.0",
    f"sample.py nowhere --seed={2**64}": f"--seed={2**64}",
    "sample.py nowhere --plugin=nowhere.py": "nowhere.py: no such",
    "eval.py " + "x" * 300: "longer than the file system allows",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_ends_with_code_2_and_a_hint_before_anything_is_done(command, cache, call):
    name, *given = command.split()
    code, said = call(name.removesuffix(".py"), *given)
    assert code == 2, said
    assert MISTAKES[command] in said
    assert not list(cache.rglob("*.whl"))  # nothing was fetched


# The flags of eval.py with what each needs, and with something that it does not go with.
WRONG_FLAGS = [
    ("run", ["--reference=relu"], "--reference goes with runs to compare. Here: one run to score."),
    ("run", ["--out=report.html"], "--out goes with runs to compare or claims to judge. Here: one run to score."),
    ("run", ["--export=hf", "--device=cpu"], "Here: one run to export."),
    ("run", ["--export=hf", "--data.corpus=stdlib"], "--data.corpus goes with one run to score on another text. Here:"),
    ("run", ["--data.column=body"], "--data.column goes with one run to score on another text. Here:"),
    ("study", ["--device=cpu"], "--device goes with one run to score or one run to score on another text. Here:"),
    ("study", ["--export=hf"], "--export goes with one run to export. Here: runs to compare."),
    ("study", ["--data.corpus=stdlib"], "Here: runs to compare."),
    ("claims", ["--reference=relu"], "--reference goes with runs to compare. Here: claims to judge."),
]


@pytest.mark.parametrize(("place", "given", "message"), WRONG_FLAGS)
def test_a_flag_that_does_not_go_with_what_is_asked_for_is_refused(tmp_path, call, place, given, message):
    run = write_run(tmp_path / "study" / "run")
    write_study(tmp_path / "claims" / "c0", plan({"predicts": "above"}), {"gelu": GELU[:1]})
    code, said = call("eval", {"run": run}.get(place, tmp_path / place), *given)
    assert code == 2, said
    assert message in said
    assert not list(tmp_path.rglob("*.html"))


def test_a_claim_is_judged_with_its_study_and_a_folder_of_claims_by_itself(tmp_path, call):
    losses = {"gelu": GELU, "sigmoid": shifted(0.1)}
    study = write_study(tmp_path / "claims" / "c0", plan({"predicts": "above"}), losses)
    for place, page in ((study, "verdict.html"), (tmp_path / "claims", "report.html")):
        code, said = call("eval", place)
        assert code == 0, said
        assert "C0 SUPPORTED: “Worse”" in said
        assert said.splitlines()[-1] == f"report: {place / page}"
    assert sorted(path.name for path in study.glob("*.html")) == ["report.html", "verdict.html"]


def test_a_name_that_cannot_be_written_is_said_without_a_traceback(capsys):
    assert errors.door(lambda: len("st\udcfcdy".encode())) == 2
    assert capsys.readouterr().err == "error: '\\udcfc' in a name is not UTF-8. Set PYTHONUTF8=1.\n"


def test_help_documents_every_field_with_its_default_and_imports_nothing_slow():
    parts = {
        "train.py": ("--train.lr FLOAT", "(default: 0.001)", "--data.corpus", "--model.activation", "--wandb.mode"),
        "eval.py": ("--reference", "--data.column", "(default: the study's)"),
        "sample.py": ("--top_k INT", "(default: 50)", '--prompt="-x y"'),
    }
    for name in parts:
        done = door("-X", "importtime", name, "--help", COLUMNS="200")
        assert done.returncode == 0
        text = " ".join(done.stdout.split())
        assert [part for part in parts[name] if part not in text] == []
        for slow in ("torch", "wandb", "datasets", "plotly", "pandas", "scipy", "transformers"):
            assert f"| {slow}\n" not in done.stderr


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


@pytest.mark.parametrize("arguments", ["train.py --modle.lr=1", "eval.py --help"])
def test_no_color_is_honoured(arguments):
    colour = "\x1b["
    assert colour in on_a_terminal(*arguments.split(), TERM="xterm", NO_COLOR="")
    assert colour not in on_a_terminal(*arguments.split(), TERM="xterm", NO_COLOR="1")


@pytest.mark.parametrize("out", [None, io.StringIO()], ids=["closed", "replaced"])
def test_a_door_needs_no_stdout_of_a_terminal(monkeypatch, out):
    monkeypatch.setattr(sys, "stdout", out)
    assert errors.door(lambda: print("said")) == 0
