import json
import subprocess
import sys

import pytest

from errors import UserError
from training.loop import train
from training.metrics import Metrics
from training.wandb_mirror import WandbMirror


def inspect(run):
    """The entries of an offline wandb file, read by wandb's own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def history(folder):
    """The records of an offline wandb run."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    entries = inspect(run)
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    return entries, [{k: v for k, v in item.items() if not k.startswith("_")} for item in items]


def test_the_offline_wandb_file_holds_the_records_of_metrics_jsonl(tiny, tmp_path, wandb_home, capsys):
    train(tiny(wandb={}), tmp_path / "run")
    entries, mirrored = history(tmp_path / "run")
    ours = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert mirrored == ours
    metrics = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert any(metric.get("step_metric") == "tokens" for metric in metrics)
    assert "wandb sync" in capsys.readouterr().out
    config = next(entry["run"]["config"]["update"] for entry in entries if entry["type"] == "run")
    assert config["model"]["activation"] == "gelu"


def test_wandb_mode_disabled_leaves_no_trace(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "wandb").exists()


class Broken:
    """A wandb run whose background process died."""

    calls = 0

    def log(self, *_, **__):
        self.calls += 1
        raise ConnectionError("the service is gone")


def test_the_first_failure_turns_wandb_off_with_one_warning_and_metrics_go_on(tiny, tmp_path):
    said = []
    mirror = WandbMirror(tiny().wandb, tmp_path, None, said.append)
    mirror.run = broken = Broken()
    with Metrics(tmp_path / "metrics.jsonl", 0, mirror) as metrics:
        metrics.log({"step": 1, "tokens": 2})
        metrics.log({"step": 2, "tokens": 4})
    assert broken.calls == len(said) == 1
    assert "ConnectionError" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_table_that_wandb_does_not_take_is_one_warning(tiny, tmp_path):
    said = []
    mirror = WandbMirror(tiny().wandb, tmp_path, None, said.append)
    mirror.run = Broken()
    for _ in range(2):
        mirror.table("arms", ["activation"], [["gelu"]])
    assert len(said) == 1


def test_a_missing_wandb_does_not_end_a_run(tiny, tmp_path, monkeypatch, wandb_home, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tiny(), tmp_path / "run")
    assert "wandb is off for this run" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()


def test_resuming_cuts_the_file_back_and_numbers_that_json_lacks_become_null(tiny, tmp_path):
    path = tmp_path / "metrics.jsonl"
    mirror = WandbMirror(tiny().wandb, tmp_path, None, print)
    with Metrics(path, 0, mirror) as metrics:
        metrics.log({"step": 1})
        offset = metrics.offset
        metrics.log({"step": 2})
    with Metrics(path, offset, mirror) as metrics:
        metrics.log({"step": 2, "train/loss": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2, "train/loss": None},
    ]


def test_a_file_shorter_than_its_checkpoint_is_refused_and_never_padded(tiny, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="shorter than at the last checkpoint"):
        Metrics(path, 100, WandbMirror(tiny().wandb, tmp_path, None, print))
    with Metrics(path, 3, WandbMirror(tiny().wandb, tmp_path, None, print)) as metrics:
        assert metrics.offset == 3  # also before the first record


def test_a_key_without_a_network_keeps_the_run_offline(tiny, tmp_path, wandb_home, monkeypatch, capsys):
    import wandb

    def login(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr(wandb, "login", login)
    train(tiny(wandb={}), tmp_path / "run")
    assert "cannot log in" in capsys.readouterr().out
    assert len(history(tmp_path / "run")[1]) == 11
