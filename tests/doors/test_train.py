"""train.py as a user types it: in this process, or in one of its own where the process is the point."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from helpers import ROOT

from model.plugin import load_plugin
from training.config import read_toml

SMALL = ["--model.n_layer=1", "--model.n_head=2", "--model.d_model=24", "--model.context=16"]


def process(*arguments, **env):
    """Run a door in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


@pytest.fixture
def flags(corpus):
    return [f"--data.corpus={corpus}", "--data.tokenizer=bytes", *SMALL, "--train.tokens=1280", "--train.threads=1"]


def test_a_run_ends_with_its_figures_and_the_same_command_shows_them_again(call, flags, corpus, tmp_path):
    command = ["train", "configs/single.toml", *flags, f"--out={tmp_path / 'run'}"]
    code, said = call(*command)
    assert code == 0, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    figures = f"finished: {tmp_path / 'run'}  val loss {summary['val/loss']:.4f} nats/token"
    assert figures in said
    corpus.unlink()  # a finished run needs it no longer
    code, said = call(*command)
    assert (code, said.startswith(figures)) == (0, True)


def test_a_study_ends_with_its_table_and_report_and_a_plugin_is_part_of_it(call, flags, corpus, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("study.command.mirror_study", lambda rows, *given, **named: seen.append((rows, given, named)))
    plugin, folder = tmp_path / "acts.py", tmp_path / "study"
    plugin.write_text(
        "import torch\nfrom model.activations import pointwise\nACTIVATIONS = {'sine': pointwise(torch.sin)}\n"
    )
    study = ["configs/single.toml", *flags, '--model.activation=["gelu", "sine"]', "--wandb.project=mine"]
    code, said = call("train", *study, f"--out={folder}")
    assert (code, "unknown activation 'sine'" in said, folder.exists()) == (2, True, False)

    command = ["train", *study, f"--plugin={plugin}", f"--out={folder}"]
    code, said = call(*command)
    assert code == 0, said
    assert said.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert all(name in said for name in ("gelu", "sine"))
    assert f"--plugin={plugin}" in (folder / "report.html").read_text(encoding="utf-8")
    ((rows, (where, wandb), named),) = seen
    assert [row.arm.label for row in rows] == ["gelu", "sine"]
    assert (where, wandb.project, named) == (folder, "mine", {"failed": False})

    corpus.unlink()  # a finished study needs it no longer
    (folder / "report.html").unlink()
    code, said = call(*command)
    assert code == 0, said
    assert (folder / "report.html").exists()
    plugin.write_text("ACTIVATIONS = {}")
    load_plugin(plugin)  # takes back what the file added: the registry is this process's


def test_a_run_knows_its_plugin_which_runs_only_where_the_flag_names_it(call, flags, tmp_path, registry):
    units, marker = tmp_path / "units.py", tmp_path / "executed"
    text = f"import pathlib, torch\npathlib.Path({str(marker)!r}).touch()\nfrom model.activations import pointwise\n"
    text += "ACTIVATIONS = {'sine': pointwise(torch.sin)}\n"
    units.write_text(text)
    config, folder = tmp_path / "mine.toml", tmp_path / "study"
    config.write_text(f'[model]\nactivation = ["gelu", "sine"]\nplugin = "{units}"\n')
    code, said = call("train", config, *flags, f"--out={folder}")
    assert (code, f"add --plugin={units}" in said, folder.exists(), marker.exists()) == (2, True, False, False)
    code, said = call("train", config, *flags, f"--out={folder}", f"--plugin={units}")
    assert code == 0, said
    known = {name: read_toml(folder / name / "config.toml")["model"] for name in ("gelu", "sine")}
    assert [known["gelu"]["plugin"], known["gelu"]["plugin_sha256"]] == ["", ""]
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert [known["sine"]["plugin"], known["sine"]["plugin_sha256"]] == [str(units), digest]
    # Its results are shown without the plugin. A sample asks for it, and refuses another file of that name.
    shown = process("eval.py", folder)
    assert (shown.returncode, "sine" in shown.stdout) == (0, True)
    assert f"--plugin={units}" in (folder / "report.html").read_text(encoding="utf-8")
    asked = process("sample.py", folder / "sine")
    assert (asked.returncode, f"add --plugin={units}" in asked.stderr) == (2, True)
    units.write_text(text.replace("torch.sin", "torch.cos"))
    for command in (["sample.py", folder / "sine"], ["train.py", config, *flags, f"--out={folder}"]):
        changed = process(*command, f"--plugin={units}")
        assert (changed.returncode, "is not the file that this run was trained with" in changed.stderr) == (2, True)


def test_a_study_with_runs_that_failed_ends_with_code_1_and_their_names(call, flags, tmp_path):
    study = ["configs/single.toml", *flags, "--train.lr=[1e-3, 1e30]", f"--out={tmp_path / 'study'}"]
    code, said = call("train", *study)
    assert code == 1
    assert "failed: lr1e+30. The reason is in log.txt" in said
    assert (tmp_path / "study" / "report.html").exists()


def test_a_dry_run_estimates_every_study_of_a_folder_and_writes_nothing(call, flags, tmp_path):
    configs, out = tmp_path / "configs", tmp_path / "out"
    configs.mkdir()
    (configs / "a.toml").write_text('[model]\nactivation = ["gelu", "relu"]')
    (configs / "b.toml").write_text('[model]\nactivation = ["gelu", "silu"]')
    code, said = call("train", configs, *flags, "--dry-run", f"--out={out}")
    assert code == 0, said
    assert [line.split(":")[0] for line in said.splitlines() if "tuning runs" in line] == [
        "gelu",
        "relu",
        "gelu",
        "silu",
    ]
    assert "all 2 studies: 0.00 h" in said
    assert not out.exists()
    (configs / "c.toml").write_text('[model]\nactivation = "gelu"')
    code, said = call("train", configs, *flags, f"--out={out}")
    assert (code, "c.toml is a single run: a folder of configs holds studies" in said) == (2, True)


def test_the_claims_run_from_end_to_end(call, tmp_path):
    """One of them, twice, at a size of no meaning: every arm once, untuned. One seed shows nothing, as they say."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 7))) for _ in range(6000)]
    text, out, configs = tmp_path / "text.txt", tmp_path / "claims", tmp_path / "configs"
    configs.mkdir()
    gates = (ROOT / "configs" / "claims" / "c5-gates.toml").read_text(encoding="utf-8")
    for name in ("C5", "C6"):
        (configs / f"{name}.toml").write_text(gates.replace('name = "C5"', f'name = "{name}"'), encoding="utf-8")
    text.write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(8000)))
    data = [f"--data.corpus={text}", "--data.tokenizer=bytes", "--data.val_fraction=0.002", "--data.test_fraction=0"]
    size = ["--model.context=8", "--model.d_model=16", "--model.n_head=2", "--train.batch_size=2", "--train.tokens=32"]
    flags = [*data, *size, "--train.seed=[0]", "--study.lr=[]", "--train.eval_every=9", "--train.threads=1"]
    code, said = call("train", configs, *flags, f"--out={out}")
    assert code == 0, said
    verdicts = [line for line in said.splitlines() if line.startswith("C")]
    assert [line[:3] for line in verdicts] == ["C5 ", "C6 "]
    assert all("NOT DECIDED" in line and "n = 1" in line for line in verdicts)
    assert "6 of 6 runs are copied from" in said  # C6 shares the runs of C5
    assert (out / "report.html").is_file()
    # One claim by itself has a verdict too, beside its report.
    code, said = call("train", "configs/claims/c5-gates.toml", *flags, f"--out={out / 'C5'}")
    assert code == 0, said
    assert "C5 NOT DECIDED: “The sigmoid survives as a gate”" in said
    assert said.splitlines()[-1] == f"report: {out / 'C5' / 'verdict.html'}"


MISTAKES = {
    "--model.activation=rellu": "Did you mean 'relu'?",
    "--model.activaton=relu": "--model.activation",
    "--data.corpus=shakespear": "Did you mean 'shakespeare'?",
    "--data.corpus=nowhere.txt": "no such file",
    "--data.tokenizer=gtp2": "Did you mean 'gpt2'?",
    "--train.optimizer=admw": "Did you mean 'adamw'?",
    "--train.tokens=0": "train.tokens",
    "--train.lr=high": "train.lr",
    "--model.n_head=7": "7 heads",
    "configs/quikc.toml": "Did you mean 'configs/quick.toml'?",
    "configs/single.toml --train.device=mps": "this machine does not have it",
    "configs/single.toml --study.engine=ray": "--study.engine goes with a study",
    "--out=pyproject.toml": "pyproject.toml",
    "configs/quick.toml --out=" + "x" * 300: "longer than the file system allows",
}


@pytest.mark.parametrize("command", MISTAKES, ids=lambda command: command[:40])
def test_a_mistake_ends_with_code_2_and_a_hint_before_anything_is_done(call, command, cache, tmp_path):
    fresh = [] if "--out" in command else [f"--out={tmp_path / 'run'}"]
    code, said = call("train", *command.split(), *fresh)
    assert code == 2, said
    assert MISTAKES[command] in said
    assert not list(cache.rglob("*.whl"))  # nothing was fetched
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", [f"--train.batch_size={10**15}", f"--model.d_model={10**6}"])
def test_a_run_that_no_memory_holds_is_refused(call, flags, flag, tmp_path):
    more = ["--train.device=cpu", f"--train.tokens={10**18}", flag, f"--out={tmp_path / 'run'}"]
    code, said = call("train", "configs/single.toml", *flags, *more)
    assert code == 2, said
    assert "GiB. " in said
    assert "Use a smaller value of one of them" in said


def test_the_processes_of_a_study_do_not_end_by_a_name_that_stdout_cannot_encode(flags, tmp_path):
    (tmp_path / "acts.py").write_text("from torch import nn\nACTIVATIONS = {'ü': nn.ReLU}\n", encoding="utf-8")
    study = [f"--plugin={tmp_path / 'acts.py'}", '--model.activation=["ü"]', f"--out={tmp_path / 'study'}"]
    done = process("train.py", "configs/single.toml", *flags, *study, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "study" / "ü" / "summary.json").exists()
