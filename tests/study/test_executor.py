"""Studies that train: in processes, as stacks, beside another study, stopped and killed."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import begin, records, run_flags, until

from errors import Interrupted, UserError
from study.plan.engine import pick_engine
from study.plan.plan import make_plan
from study.run.protocol import run_plan, run_study
from study.run.workers import StudyLock, claim, note_failure
from training.config import tree as plain
from training.contents import read_config, read_summary
from training.loop import train


@pytest.fixture
def study(tiny):
    """Return a function from activations and changes to the tree of a study of tiny runs."""

    def make(*activations, **changes):
        tree = plain(tiny(**changes))
        tree["model"]["activation"] = list(activations)
        return tree

    return make


def stop_once(pattern, folder):
    """Send this process SIGTERM as soon as a path of that pattern is in the folder."""

    def watch():
        deadline = time.monotonic() + 250
        while not any(folder.glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def losses(folder):
    return [record["train/loss"] for record in records(folder) if "train/loss" in record]


def test_a_folder_of_something_else_is_left_alone(study, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not a study"):
        run_study(study("relu"), tmp_path / "photos")
    plan = tmp_path / "plan" / "study.toml"
    plan.parent.mkdir()
    plan.write_text("# my plan\n[train]\nlr = 0.01\n")
    with pytest.raises(UserError, match=r"study\.toml is not of a study"):
        run_study(study("relu"), plan.parent)
    assert plan.read_text().startswith("# my plan")


def test_what_a_study_beside_has_finished_is_copied_and_nothing_else(study, tmp_path, capfd):
    tuned = {"study": {"lr": [1e-3, 2e-3, 4e-3], "tune_share": 0.5, "bracket": 1, "engine": "stacked"}}
    short = {"tokens": 16 * 4 * 4}
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    assert run_study(study("relu", train=short) | tuned, first) == []
    (trained,) = first.glob("relu-*")
    (trained / "wandb").mkdir()
    (trained / "wandb" / "latest-run").symlink_to("cleaned")  # as `wandb clean` leaves it
    (second / f".{trained.name}.partial" / "old").mkdir(parents=True)  # left by a process that died while copying
    (second / "study.toml").touch()
    assert run_plan(make_plan(study("relu", "silu", train=short) | tuned), second, beside=[first]) == []
    assert "1 of 2 runs are copied from" in capfd.readouterr().out
    assert not (second / f".{trained.name}.partial").exists()
    assert not (second / trained.name / "old").exists()
    for folder, count in ((second, 2), (second / "tune", 6)):
        finished = list(folder.glob("[!.]*/summary.json"))
        assert len(finished) >= count
        for path in finished:  # a copy holds the times of the original, to the last digit
            twin = first / path.relative_to(second)
            assert ("relu" in path.parent.name) == (twin.exists() and path.read_bytes() == twin.read_bytes())
    assert run_plan(make_plan(study("relu", train={"tokens": 16 * 4 * 3})), other, beside=[first]) == []
    assert "copied" not in capfd.readouterr().out


def test_a_run_that_fails_is_reported_with_its_traceback_and_the_others_go_on(study, tmp_path, capfd):
    plugin = tmp_path / "fails.py"  # in the process of one run, and in no other
    plugin.write_text(
        "from training import step\n"
        "ACTIVATIONS, whole = {}, step.train_batch\n"
        "def batch(tokens_N, seed, *rest):\n"
        "    if seed == 3:\n"
        "        raise RuntimeError('an internal fault')\n"
        "    return whole(tokens_N, seed, *rest)\n"
        "step.train_batch = batch\n"
    )
    tree = study("relu")
    tree["train"]["seed"] = [2, 3]
    tree["model"] |= {"plugin": str(plugin), "plugin_sha256": "of a test"}
    assert run_study(tree, tmp_path / "study") == ["relu-seed3"]
    said = capfd.readouterr().out
    assert "relu-seed3 failed; the others go on" in said
    assert "ends with: RuntimeError: an internal fault" in said
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "study" / "relu-seed3" / "log.txt").read_text()
    assert read_summary(tmp_path / "study" / "relu-seed2")


def test_a_stacked_study_is_stopped_and_goes_on_under_either_engine(study, tmp_path, capfd):
    tree = study("relu", "swiglu", train={"checkpoint_every": 3, "lr": 1e-3, "tokens": 16 * 4 * 40})
    tree["train"]["seed"] = [0, 1]
    folder = tmp_path / "study"
    stop_once("*/checkpoints/step-*", folder)
    with pytest.raises(Interrupted) as stopped:
        run_study(tree | {"study": {"engine": "stacked"}}, folder)
    assert stopped.value.code == 143
    saved = {path.parent.parent.name for path in folder.glob("*/checkpoints/step-*")}
    assert saved == {"relu-seed0", "relu-seed1"}  # one stack after another
    assert run_study(tree | {"study": {"engine": "processes"}}, folder) == []
    assert "relu-seed1: resumed at step" in (folder / "relu-seed1" / "log.txt").read_text()
    (folder / "swiglu-seed0" / "summary.json").unlink()
    (folder / "swiglu-seed1" / "summary.json").unlink()
    assert run_study(tree | {"study": {"engine": "stacked"}}, folder) == []
    for name, config in make_plan(tree).runs.items():
        train(config, tmp_path / "alone" / name)
        assert losses(folder / name) == pytest.approx(losses(tmp_path / "alone" / name), abs=1e-4)
    assert "relu-seed1  step 40/40" in capfd.readouterr().out


def test_a_command_waits_for_the_runs_of_others_and_takes_those_that_they_leave(study, tmp_path, capfd):
    folder = tmp_path / "study"
    tree = study("relu", "gelu") | {"study": {"engine": "processes"}}
    assert run_study(tree, folder) == []
    before = [(folder / name / "metrics.jsonl").read_bytes() for name in ("relu", "gelu")]
    others = []
    for name in ("relu", "gelu"):
        (folder / name / "summary.json").unlink()
        others.append(claim(folder / name))
    capfd.readouterr()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(run_study, tree, folder)
        said = ""
        while "waiting for" not in said and not waiting.done():
            said += capfd.readouterr().out
            time.sleep(0.01)
        with pytest.raises(UserError, match="trained by other commands, with other settings"):
            run_study(study("relu", "gelu", "silu"), folder)
        note_failure(folder / "gelu")
        for lock in others:
            lock.release()
        assert waiting.result() == ["gelu"]  # since another command has seen it fail
    said += capfd.readouterr().out
    assert said.count("waiting for relu and 1 more, trained by other commands") == 1
    assert "gelu failed; the others go on" in said
    assert read_summary(folder / "relu")
    assert not (folder / "gelu" / "summary.json").exists()
    # Once all commands have ended, the failed run is tried again, and the plan may grow.
    assert run_study(study("relu", "gelu", "silu"), folder) == []
    assert [(folder / name / "metrics.jsonl").read_bytes() for name in ("relu", "gelu")] == before


def test_a_study_belongs_to_one_command_only_when_all_others_have_left(tmp_path):
    with StudyLock(tmp_path) as one, StudyLock(tmp_path) as other:
        one.share()
        other.share()
        assert not one.take_alone()
        assert other.take_alone()
        assert not one.take_alone()


def test_the_engine_is_chosen_by_the_device_unless_by_hand(tiny, monkeypatch):
    runs = [tiny(), tiny(train={"seed": 1})]
    assert pick_engine("auto", runs) == "processes"
    monkeypatch.setattr("study.plan.engine.pick_device", lambda _: torch.device("cuda"))
    assert pick_engine("auto", runs) == "stacked"
    assert pick_engine("processes", runs) == "processes"


def test_a_study_that_is_killed_and_then_stopped_is_its_runs_each_as_if_alone(corpus, tmp_path, call):
    flags = ['--model.activation=["relu", "gelu"]', "--study.lr=[4e-3, 64e-3, 1.0]", "--study.bracket=1"]
    flags += ["--train.tokens=3200"]
    folder = tmp_path / "study"
    for moment, signum, code in (
        ("tune/*/checkpoints/step-*", signal.SIGKILL, -9),
        ("*/checkpoints/step-*", signal.SIGTERM, 143),
    ):
        process = begin(corpus, folder, *flags)
        until(process, lambda moment=moment: any(folder.glob(moment)))
        process.send_signal(signum)
        _, error = process.communicate(timeout=100)
        assert process.returncode == code, error
    command = ["train", "configs/single.toml", *run_flags(corpus), *flags, f"--out={folder}"]
    code, said = call(*command)
    assert code == 0, said
    assert "parameters (+0.00%)" in said
    tuning, final = ([path.parent for path in folder.glob(p)] for p in ("tune/*/summary.json", "*/summary.json"))
    assert len(tuning) >= 6
    assert [run.name.partition("-")[0] for run in sorted(final)] == ["gelu", "relu"]
    for run in (*tuning, *final):
        train(read_config(run), tmp_path / "alone" / run.name)
        assert records(run) == records(tmp_path / "alone" / run.name)

    before = (final[0] / "metrics.jsonl").stat().st_mtime_ns
    assert call(*command)[0] == 0
    assert (final[0] / "metrics.jsonl").stat().st_mtime_ns == before  # finished runs are skipped
    code, said = call(*command, '--model.activation=["relu"]')
    assert code == 2
    assert "gelu: seed 0" in said
