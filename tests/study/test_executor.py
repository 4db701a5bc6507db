import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from errors import Interrupted, UserError
from study.plan.grid import expand
from study.run.protocol import COPYING, pick_engine, run_study
from training.config import tree as plain
from training.folder import read_run_config, read_summary
from training.loop import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tiny):
    """Return a function from axes to the tree of a study of tiny runs."""

    def make(activation=("relu", "gelu", "swiglu"), **changes):
        tree = plain(tiny(**changes))
        tree["model"]["activation"] = list(activation)
        return tree

    return make


def stop_once(path_in, folder):
    """Send this process SIGTERM as soon as such a path is in the folder."""

    def watch():
        deadline = time.monotonic() + 250
        while not any(folder.glob(path_in)) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def losses(folder):
    return [json.loads(line).get("train/loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_study_is_its_runs_each_as_if_alone(study, tmp_path, capfd):
    tree = study()
    runs = expand(tree, "it")
    assert run_study(tree, tmp_path / "study") == []
    for name, config in runs.items():
        train(config, tmp_path / "alone" / name)
        assert losses(tmp_path / "study" / name) == losses(tmp_path / "alone" / name)
    shown = capfd.readouterr().out
    assert "parameters (+0.00%)" in shown
    before = (tmp_path / "study" / "relu" / "metrics.jsonl").stat().st_mtime_ns
    assert run_study(tree, tmp_path / "study") == []  # finished runs are skipped
    assert (tmp_path / "study" / "relu" / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_a_study_beside_has_finished_is_copied_and_nothing_else(study, tmp_path, capfd):
    tuned = {"study": {"lr": [1e-3, 2e-3, 4e-3], "tune_share": 0.5}}
    for name, tree, beside in (
        ("first", study(["relu", "gelu"]), []),
        ("second", study(["relu", "silu"]), ["first"]),
        ("alone", study(["relu", "silu"]), []),
        ("other", study(["relu", "silu"], train={"tokens": 16 * 4 * 3}), ["first"]),
    ):
        (tmp_path / name / COPYING).mkdir(parents=True)  # of a process that died while copying
        (tmp_path / name / "study.toml").touch()
        assert run_study(tree | tuned, tmp_path / name, beside=[tmp_path / b for b in beside]) == []
        assert (tmp_path / name / COPYING).exists() == (not beside)
    written = {
        name: {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("summary.json")}
        for name in ("first", "second", "alone", "other")
    }
    assert written["second"].keys() == written["alone"].keys()
    equal = {name for name, text in written["second"].items() if text == written["first"].get(name)}  # their times too
    assert equal == {name for name in written["second"] if "relu" in name}
    assert not any(text == written["first"].get(name) for name, text in written["other"].items())
    for name in written["alone"]:
        ours, theirs = ((tmp_path / f / name).parent for f in ("second", "alone"))
        assert losses(ours) == losses(theirs)
    assert "runs are copied from" in capfd.readouterr().out
    (tmp_path / "first" / "relu" / "wandb").mkdir()
    (tmp_path / "first" / "relu" / "wandb" / "latest-run").symlink_to("cleaned")  # as `wandb clean` leaves it
    assert run_study(study(["relu"]) | tuned, tmp_path / "last", beside=[tmp_path / "first"]) == []
    assert losses(tmp_path / "last" / "relu") == losses(tmp_path / "first" / "relu")


def test_a_run_that_fails_is_reported_and_the_others_go_on(study, tmp_path, capfd):
    plugin = tmp_path / "acts.py"
    plugin.write_text(
        "import torch\nfrom model.activations import Activation, pointwise\n"
        "ACTIVATIONS = {'broken': Activation(pointwise(lambda u: u @ u))}\n"
    )
    code = (
        "import sys; from pathlib import Path; from model.activations import load_plugin\n"
        "from study.run.protocol import run_study; import json\n"
        "if __name__ == '__main__':\n"
        "    load_plugin(Path(sys.argv[1])); tree = json.loads(sys.argv[2])\n"
        "    print('FAILED', run_study(tree, Path(sys.argv[3]), Path(sys.argv[1])))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    tree = study(["relu", "broken", "gelu"])
    command = [sys.executable, str(script), str(plugin), json.dumps(tree), str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "FAILED ['broken']" in done.stdout, done.stdout + done.stderr
    assert "broken failed; the others go on" in done.stdout
    assert read_summary(tmp_path / "study" / "relu")
    assert read_summary(tmp_path / "study" / "gelu")
    assert "RuntimeError" in (tmp_path / "study" / "broken" / "log.txt").read_text()


def test_a_stacked_study_is_stopped_and_goes_on_under_either_engine(study, tmp_path, capfd):
    tree = study(["relu", "swiglu"], train={"checkpoint_every": 3, "lr": 1e-3, "tokens": 16 * 4 * 60})
    tree["train"]["seed"] = [0, 1]
    stop_once("*/checkpoints/step-*", tmp_path / "study")
    with pytest.raises(Interrupted) as stopped:
        run_study(tree | {"study": {"engine": "stacked"}}, tmp_path / "study")
    assert stopped.value.code == 143
    begun = {p.parent.parent.name for p in (tmp_path / "study").glob("*/checkpoints/step-*")}
    assert begun == {"relu-seed0", "relu-seed1"}  # one stack after another
    assert run_study(tree | {"study": {"engine": "processes"}}, tmp_path / "study") == []
    assert "relu-seed1: resumed at step" in (tmp_path / "study" / "relu-seed1" / "log.txt").read_text()
    (tmp_path / "study" / "swiglu-seed0" / "summary.json").unlink()
    (tmp_path / "study" / "swiglu-seed1" / "summary.json").unlink()
    assert run_study(tree | {"study": {"engine": "stacked"}}, tmp_path / "study") == []
    for name, config in expand(tree, "it").items():
        train(config, tmp_path / "alone" / name)
        got, expected = ([v for v in losses(tmp_path / f / name) if v] for f in ("study", "alone"))
        assert got == pytest.approx(expected, abs=1e-4)
    assert "relu-seed1  step 60/60" in capfd.readouterr().out


def test_the_engine_is_chosen_by_the_device_unless_by_hand(tiny, monkeypatch):
    runs = [tiny(), tiny(train={"seed": 1})]
    assert pick_engine("auto", runs) == "processes"
    monkeypatch.setattr("study.run.protocol.pick_device", lambda _: torch.device("cuda"))
    assert pick_engine("auto", runs) == "stacked"
    assert pick_engine("processes", runs) == "processes"


def test_a_plan_that_somebody_wrote_is_left_alone(study, tmp_path):
    path = tmp_path / "study" / "study.toml"
    path.parent.mkdir()
    path.write_text("# my plan\n[train]\nlr = 0.01\n")
    with pytest.raises(UserError, match=r"study\.toml is not of a study"):
        run_study(study(), path.parent)
    assert path.read_text().startswith("# my plan")


def test_another_study_in_the_folder_is_refused(study, tmp_path):
    tree = study(["relu"])
    run_study(tree, tmp_path / "study")
    other = study(["relu", "gelu"])
    with pytest.raises(UserError, match=r"model.activation: \['relu'\] in the folder, \['relu', 'gelu'\] asked for"):
        run_study(other, tmp_path / "study")
    (tmp_path / "killed").mkdir()
    for name in (".lock", ".holder"):  # what a process leaves that is killed before it writes study.toml
        (tmp_path / "killed" / name).write_text("")
    assert run_study(tree, tmp_path / "killed") == []
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not a study"):
        run_study(tree, tmp_path / "photos")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The command of a small tuned study, without --out, and the results of one that ran in peace."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "corpus.txt").write_text("\n".join(f"the {n} of the {n * n % 97}" for n in range(3000)))
    flags = [f"--data.corpus={folder / 'corpus.txt'}", "--data.tokenizer=bytes", '--model.activation=["relu", "gelu"]']
    flags += ["--model.d_model=24", "--model.n_layer=2", "--model.context=16", "--train.batch_size=4"]
    flags += ["--train.tokens=25600", "--train.checkpoint_every=20", "--train.threads=1", "--train.eval_every=50"]
    flags += ["--study.lr=[4e-3, 64e-3, 1.0]", "--study.tune_share=0.2"]
    command = [sys.executable, "train.py", "configs/quick.toml", *flags]
    env = os.environ | {"ACTGPT_CACHE": str(folder / "cache")}
    subprocess.run([*command, f"--out={folder / 'study'}"], cwd=ROOT, check=True, capture_output=True, env=env)
    return command, env, results(folder / "study")


def results(folder):
    """Training losses and learning rate of every run, tuning runs too."""
    return {
        path.parent.relative_to(folder).as_posix(): (losses(path.parent), read_run_config(path.parent).train.lr)
        for path in folder.rglob("summary.json")
    }


@pytest.mark.parametrize(
    ("moment", "signum", "code"),
    [
        ("tune/*/checkpoints/step-*", signal.SIGKILL, -9),
        ("*/checkpoints/step-*", signal.SIGTERM, 143),
    ],
)
def test_a_study_that_is_stopped_or_killed_ends_in_the_same_results(uninterrupted, tmp_path, moment, signum, code):
    command, env, expected = uninterrupted
    command = [*command, f"--out={tmp_path / 'study'}"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 100
    while not any((tmp_path / "study").glob(moment)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    process.communicate(timeout=100)
    assert process.returncode == code
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "study") == expected
