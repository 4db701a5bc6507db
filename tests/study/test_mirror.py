import json
import shutil
import sys

import pytest
from helpers import GELU, SIGMOID_GAPS, records, rows_of, wandb_entries, write_arm, write_plan, write_run
from scipy import stats

from study.report.compare import compare
from study.report.figures import difference_figure
from study.report.mirror import arms_table, difference_records, metric_names, mirror_study
from training.config import WandbConfig

OFFLINE = WandbConfig(mode="offline", project="p")
FINAL = ["seeds", "val_loss", "sd", "reference", "difference", "low", "high", "p", "verdict", "seeds_to_decide"]
COST = ["can_find", "tuned_lr", "parameters", "tokens_per_s"]


@pytest.fixture
def study(tmp_path):
    """Two arms of five seeds, one of them tuned."""
    folder = write_plan(tmp_path / "study", model={"activation": ["relu", "gelu"]}, train={"seed": [0, 1, 2, 3, 4]})
    write_arm(folder, "gelu", GELU, lr=0.004)
    write_arm(folder, "relu", [loss + 0.25 for loss in GELU], lr=0.004)
    for lr, loss in {0.002: 5.0, 0.004: 4.5, 0.008: 4.75}.items():
        write_run(folder / "tune" / f"relu-{lr}", "relu", loss, tokens=500, lr=lr, seed=1000)
    return folder


def summary_in(entries):
    """The summary that the entries of a wandb run add up to."""
    summary = {}
    for entry in entries:
        summary |= entry.get("summary", {}).get("update", {})
    return summary


def mirrored(folder):
    """What the offline wandb run in the folder holds: its description, its summary and its table. It is removed."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    entries = wandb_entries(run)
    summary = summary_in(entries)
    about = next(entry["run"] for entry in entries if entry["type"] == "run")
    table = json.loads((run / "files" / summary["arms.path"]).read_text())
    shutil.rmtree(folder / "wandb")
    return about, summary, table


def test_the_table_has_a_line_for_each_arm_with_its_figures(study):
    columns, (relu, gelu) = arms_table(rows_of(study))
    assert columns == ["activation", *FINAL, *COST]
    sd = pytest.approx(0.0494105884)
    assert relu == ["relu", 5, 4.25, sd, "gelu", 0.25, 0.25, 0.25, relu[8], "worse", None, 0, 0.004, 54_321, 1234.5]
    assert 0 <= relu[8] < 0.05
    assert gelu == ["gelu", 5, 4.0, sd, "gelu", None, None, None, None, "", None, None, None, 54_321, 1234.5]


def test_every_setting_that_varies_is_a_column_and_what_is_missing_is_none(tmp_path):
    write_run(tmp_path / "a", "gelu", 4.0, momentum=0.5)
    write_run(tmp_path / "b", "relu", 4.25, momentum=0.5)
    write_run(tmp_path / "c", "relu", None, momentum=0.9)
    columns, lines = arms_table(rows_of(tmp_path))
    assert columns[:4] == ["activation", "momentum", "seeds", "val_loss"]
    assert [line[:8] for line in lines] == [
        ["relu", 0.5, 1, 4.25, None, "gelu", 0.25, None],
        ["relu", 0.9, 1, None, None, "gelu", None, None],
        ["gelu", 0.5, 1, 4.0, None, "gelu", None, None],
    ]
    json.dumps(lines, allow_nan=False)


def test_wandb_gets_the_table_under_an_id_that_only_the_study_decides(study, wandb_home):
    rows, said = rows_of(study), []
    mirror_study(rows, study, OFFLINE, failed=False, say=said.append)
    assert said == [
        f"wandb: kept offline, since wandb.mode = offline; to upload it later: wandb sync {study}/wandb/offline-run-*"
    ]
    about, summary, table = mirrored(study)
    assert about["run_id"] == "7d05b427811dd489"  # in every process, on every machine
    wanted = {"display_name": "study", "project": "p", "run_group": "study", "job_type": "study"}
    assert wanted.items() <= about.items()
    assert about["config"]["update"]["model"]["activation"] == ["relu", "gelu"]
    assert summary["finding"] == "relu ends 0.25 nats above gelu (95 % interval 0.25 to 0.25, 5 seeds)"
    assert (table["columns"], table["data"]) == arms_table(rows)
    mirror_study(rows, study, OFFLINE, failed=False, say=said.append)
    assert mirrored(study)[0]["run_id"] == about["run_id"]
    (study / "study.toml").write_text("[model]\nactivation = ['relu']\n")
    mirror_study(rows, study, OFFLINE, failed=False, say=said.append)
    assert mirrored(study)[0]["run_id"] != about["run_id"]


def test_wandb_gets_the_differences_of_the_page_with_their_intervals_and_the_page(tmp_path, wandb_home):
    study = write_plan(tmp_path / "study", model={"activation": ["gelu", "sigmoid"]}, train={"seed": [0, 1, 2, 3, 4]})
    write_arm(study, "gelu", GELU)
    write_arm(study, "sigmoid", [loss + gap for loss, gap in zip(GELU, SIGMOID_GAPS, strict=True)])
    path = study / "sigmoid-seed4" / "metrics.jsonl"  # scored more often in its second half, and lower there
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[5:]:
        line["val/loss"] = line.get("val/loss", 9.0) - 0.375
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = compare([study], "gelu")
    mirror_study(rows, study, OFFLINE, failed=False, say=lambda _: None)

    (run,) = (study / "wandb").glob("offline-run-*")
    entries = wandb_entries(run)
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    items = [item for item in items if "difference/sigmoid/mean" in item]
    traces = {(trace["meta"]["arm"], trace["meta"]["kind"]): trace for trace in difference_figure(rows)["data"]}
    line = traces["sigmoid", "difference"]
    assert [item["tokens"] for item in items] == line["x"] == [200, 400, 600, 800, 1000]
    assert [item["difference/sigmoid/mean"] for item in items] == pytest.approx(line["y"], abs=1e-5)
    assert not any("gelu" in key for item in items for key in item)
    for item in items:
        gaps = []
        for seed in range(5):
            pair = (records(study / f"{name}-seed{seed}") for name in ("sigmoid", "gelu"))
            ours, theirs = (next(r for r in run if r["tokens"] == item["tokens"])["val/loss"] for run in pair)
            gaps.append(ours - theirs)
        interval = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
        ends = [item["difference/sigmoid/low"], item["difference/sigmoid/high"]]
        assert ends == pytest.approx([interval.low, interval.high], abs=1e-9)
    metrics = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert {metric.get("step_metric") for metric in metrics if metric.get("glob_name") == "*"} == {"tokens"}
    page = run / "files" / summary_in(entries)["report.path"]
    assert page.read_bytes() == (study / "report.html").read_bytes()


def test_one_seed_has_a_difference_and_no_interval(tmp_path):
    write_run(tmp_path / "a", "gelu", 4.0)
    write_run(tmp_path / "b", "relu", 4.25)
    records = difference_records(rows_of(tmp_path))
    assert records[-1] == {"tokens": 1000, "difference/relu/mean": 0.25}


def test_each_arm_has_a_name_that_wandb_can_filter_by():
    labels = ["gelu", "gelu · lr=0.01", "relu · x=1", "relu · x=-1"]
    assert metric_names(labels) == ["gelu", "gelu_lr_0_01", "relu_x_1", "relu_x_1_"]


def test_what_is_uploaded_already_is_not_named_again(study, wandb_home):
    first, second, trial = (study / place / "wandb" / "offline-run-1-x" for place in ("a", "b", "tune/c"))
    for run in (first, second, trial):
        run.mkdir(parents=True)
    for run in (first, trial):
        (run / "run-x.wandb.synced").touch()
    said = []
    mirror_study(rows_of(study), study, OFFLINE, failed=False, say=said.append)
    assert said[0].endswith(f": wandb sync {study}/*/wandb/offline-run-* {study}/wandb/offline-run-*")
    (trial / "run-x.wandb.synced").unlink()
    mirror_study(rows_of(study), study, OFFLINE, failed=False, say=said.append)
    assert said[1].count(f"{study}/tune/*/wandb/offline-run-*") == 1


def test_wandb_never_stands_in_a_study_s_way(study, wandb_home, monkeypatch):
    said = []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    mirror_study(rows_of(study), study, OFFLINE, failed=False, say=said.append)
    assert said == []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror_study(rows_of(study), study, OFFLINE, failed=True, say=said.append)
    assert len(said) == 1
    assert "wandb is off" in said[0]
    assert not (study / "wandb").exists()
