import csv
import json

import numpy as np
import pytest
from helpers import write_plan, write_run

from errors import UserError
from study.judge.effects import compare_arms
from study.judge.results import load_study, read_result, varying
from study.report.spreadsheet import write_csv
from training.contents import seal


def test_a_run_folder_is_read_whole(tmp_path):
    run = read_result(write_run(tmp_path / "one", "relu", 4.0, seed=3))
    assert (run.name, run.activation, run.budget, run.seed, run.status) == ("one", "relu", 1000, 3, "finished")
    assert run.curve("val/loss") == [(200, 4.8), (400, 4.6), (600, 4.4), (800, 4.2), (1000, 4.0)]
    assert run.settings["train.seed"] == 3
    assert not {"train.threads", "wandb.group"} & set(run.settings)


def test_a_run_without_a_result_has_no_final_figure(tmp_path):
    figures = dict.fromkeys(("val/loss", "val/perplexity", "val/bits_per_byte"))  # strict JSON: null for nan
    diverged = read_result(write_run(tmp_path / "diverged", summary={"status": "diverged"} | figures))
    assert (diverged.status, diverged.final("val/loss"), diverged.final("params/total")) == ("diverged", None, None)
    run = read_result(write_run(tmp_path / "run", loss=None))
    assert (run.status, run.final("val/loss")) == ("unfinished", None)
    assert run.progress == "unfinished at 500 of 1,000 tokens, last validation loss 5.100"


def test_a_last_line_cut_short_is_ignored_and_any_other_damage_is_named(tmp_path):
    metrics = write_run(tmp_path / "run") / "metrics.jsonl"
    whole = read_result(metrics.parent).records
    text = metrics.read_bytes()
    metrics.write_bytes(text + '{"step": 11, "note": "é'.encode()[:-1])
    assert read_result(metrics.parent).records == whole
    first, *others = text.splitlines(keepends=True)
    for damage in (
        b"{" + text,
        b"[1]\n" + text,
        b'{"step": "1", "tokens": 1, "time": 1}\n' + text,
        b'{"step": 1, "tokens": 1, "time": 1e999}\n' + text,
        b'{"step": 1, "tokens": 1, "time": 1, "val/loss": "4"}\n' + text,
        b'{"step": 10000000000000000000000, "tokens": 1, "time": 1}\n' + text,
    ):
        metrics.write_bytes(damage)
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged .* Line 1 is the first that is wrong"):
            read_result(metrics.parent)
    for damage in ([first, first, *others], [*others, first]):
        metrics.write_bytes(b"".join(damage))
        with pytest.raises(UserError, match=r"step 1 follows step \d+\. Line \d+ is the first that is wrong"):
            read_result(metrics.parent)


def test_figures_that_were_changed_after_their_run_are_refused(tmp_path):
    run = write_run(tmp_path / "run")
    np.save(run / "val_windows.npy", np.ones(4, np.float32))
    path = run / "summary.json"
    summary = seal(json.loads(path.read_text()), run)
    path.write_text(json.dumps(summary))
    assert read_result(run).final("val/loss") == 4
    for change in (
        {"val/loss": 3.5},
        {"params/total": 54_320},
        {"environment": {}},
        {"mine": 1},
        {"status": "unknown"},
    ):
        path.write_text(json.dumps(summary | change))
        with pytest.raises(UserError, match=r"summary\.json is damaged .*The train\.py command of this run writes it"):
            read_result(run)
    path.write_text(json.dumps(summary))
    for name in ("config.toml", "metrics.jsonl", "val_windows.npy"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name} is damaged .*its SHA-256 is not the one in summary\.json"):
            read_result(run)
        (run / name).write_bytes(content)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", np.ones((2, 2), np.float32), np.ones(3, int), np.array([np.nan]), np.array([{}])]
)
def test_windows_that_are_no_list_of_losses_are_refused(tmp_path, content):
    path = write_run(tmp_path / "run") / "val_windows.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(UserError, match=r"val_windows\.npy is damaged or was not written by this project"):
        read_result(path.parent).windows  # noqa: B018


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: a run folder holds config\.toml"):
        load_study([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run: a run folder holds config\.toml"):
        load_study([tmp_path])
    write_run(tmp_path / "tune" / "gelu-lr0.1")
    with pytest.raises(UserError, match="holds no run beside its tuning runs"):
        load_study([tmp_path])
    with pytest.raises(UserError, match="is not a run folder"):
        read_result(tmp_path)
    (tmp_path / "config.toml").write_text("[train]\ntokens = 5\n")
    with pytest.raises(UserError, match=r"config\.toml is damaged .*: KeyError: 'model'"):
        load_study([tmp_path])


def test_a_study_keeps_the_runs_that_count_apart_from_those_that_tune(tmp_path):
    write_run(tmp_path / "gelu-seed10", seed=10)
    write_run(tmp_path / "gelu-seed2", seed=2)
    write_run(tmp_path / "tune" / "gelu-lr0.1", lr=0.1)
    write_plan(tmp_path, study={"reference": "relu"})
    study = load_study([tmp_path, tmp_path / "gelu-seed2"])  # named twice, it counts once
    assert [run.name for run in study.runs] == ["gelu-seed2", "gelu-seed10"]
    assert [run.name for run in study.tuning] == ["gelu-lr0.1"]
    assert study.named == "relu"
    assert load_study([tmp_path / "gelu-seed2"]).named is None
    assert varying(study.runs) == ["train.seed"]


def test_what_a_study_asks_for_and_does_not_have_is_missing(tmp_path):
    write_plan(tmp_path, model={"activation": ["relu", "gelu"]}, train={"seed": [0, 1], "lr": 0.5}, study={"lr": [1.0]})
    for name in ("relu", "gelu"):
        write_run(tmp_path / f"{name}-seed0", name)
    write_run(tmp_path / "gelu-seed1", seed=1)
    ((folder, settings),) = load_study([tmp_path]).missing()
    assert (folder, settings) == (tmp_path, {"train.seed": 1, "model.activation": "relu"})
    write_run(tmp_path / "relu-seed1", "relu", seed=1)
    assert load_study([tmp_path]).missing() == []


def test_a_tuned_run_is_there_at_whatever_rate_it_trained(tmp_path):
    grid = [
        {"study": {"lr": [1e-3, 2e-3, 4e-3]}, "model": {"n_layer": 2}},
        {"model": {"n_layer": 4}, "train": {"lr": 5e-4}},
    ]
    study = write_plan(tmp_path / "study", model={"activation": "gelu"}, grid=grid)
    write_run(study / "tuned", lr=0.002)
    ((_, settings),) = load_study([study]).missing()
    assert settings == {"model.activation": "gelu", "train.seed": 0, "model.n_layer": 4, "train.lr": 5e-4}


def test_the_csv_has_a_row_for_each_run_and_reads_back_exactly(tmp_path):
    write_run(tmp_path / "s" / "relu", "relu, 'x'\n\"y\"", 1 / 3)
    write_run(tmp_path / "s" / "stopped", loss=None)
    write_run(tmp_path / "s" / "tune" / "relu", "relu", 0.7, tokens=500, lr=0.1)
    study = load_study([tmp_path / "s"])
    write_csv(study, compare_arms(study), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        relu, stopped, tuning = csv.DictReader(file)
    assert (relu["study"], relu["stage"], relu["run"], relu["status"]) == ("s", "final", "relu", "finished")
    assert relu["model.activation"] == "relu, 'x'\n\"y\""
    assert float(relu["val/loss"]) == 1 / 3
    assert (stopped["status"], stopped["val/loss"], stopped["train.lr"]) == ("unfinished", "", "0.001")
    assert (tuning["study"], tuning["stage"], tuning["train.lr"], tuning["train.tokens"]) == ("s", "tune", "0.1", "500")
    assert not {"sample/text", "environment"} & set(relu)


def test_no_cell_of_the_csv_is_a_formula(tmp_path):
    names = ["=HYPERLINK(A1)", "+1", "-1", "@SUM(A1)"]
    for i, name in enumerate(names):
        write_run(tmp_path / "s" / f"{name[0]}{i}", name, -1.5)
    study = load_study([tmp_path / "s"])
    write_csv(study, compare_arms(study), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["run"][-1])
    assert [row["model.activation"] for row in rows] == [f"'{name}" for name in names]
    assert [row["run"] for row in rows] == [f"'{name[0]}{i}" for i, name in enumerate(names)]
    assert {row["val/loss"] for row in rows} == {"-1.5"}  # a number stays one


def test_a_run_of_one_grid_does_not_stand_in_for_that_of_another(tmp_path):
    study = write_plan(
        tmp_path / "study", model={"activation": "gelu"}, grid=[{"model": {"n_layer": 2}}, {"model": {"context": 64}}]
    )
    write_run(study / "wide")  # two layers, context 128
    ((_, settings),) = load_study([study]).missing()
    assert settings == {"model.activation": "gelu", "train.seed": 0, "model.n_layer": 4, "model.context": 64}
