from typing import Any

import pytest
from helpers import GELU, by_label, rows_of, tune, write_arm, write_plan, write_run

from model.activations import ACTIVATIONS
from study.judge.arms import KNOWN, make_arms
from study.judge.effects import compare_arms
from study.judge.results import load_study
from study.report.sentences import notes, scope
from study.report.study_page import sections


def test_a_failed_and_a_missing_run_are_named_and_nothing_is_averaged(seeded):
    write_arm(seeded, "relu", [*GELU[:3], None])  # seed 3 stopped, seed 4 never began
    write_plan(seeded, model={"activation": ["sigmoid", "relu", "gelu", "tanh"]}, train={"seed": [0, 1, 2, 3, 4]})
    study = load_study([seeded])
    rows = compare_arms(study, "gelu")
    relu = by_label(rows)["relu"]
    assert (relu.arm.mean("val/loss"), relu.final, relu.verdict) == (None, None, "")
    assert relu.arm.status == "3 of 5 seeds"
    assert notes(rows, study) == [
        "relu: seed 3 unfinished at 500 of 1,000 tokens, last validation loss 5.100; seed 4 not begun.",
        "tanh: no run has begun.",
    ]
    assert by_label(rows)["sigmoid"].verdict == "worse"
    assert scope(rows).endswith("1 of 3 arms are not whole")


@pytest.mark.parametrize(
    ("begun", "absent"),
    [
        (["gelu-2", "gelu-8", "relu-2"], "relu · n_layer=8"),
        (["gelu-2"], "gelu · n_layer=8, relu · n_layer=2 and relu · n_layer=8"),
    ],
)
def test_arms_that_no_run_has_begun_of_are_named_by_what_sets_them_apart(tmp_path, begun, absent):
    axes = {"activation": ["gelu", "relu"], "n_layer": [2, 8], "context": [128]}
    write_plan(tmp_path, model=axes, train={"seed": [0, 1]})
    for name in begun:
        activation, n_layer = name.split("-")
        config = write_run(tmp_path / name, activation) / "config.toml"
        config.write_text(config.read_text().replace("n_layer = 2", f"n_layer = {n_layer}"))
    study = load_study([tmp_path])
    assert notes(compare_arms(study, "gelu"), study)[-1] == f"{absent}: no run has begun."


def test_the_five_come_first_in_the_registry_too():
    assert [*ACTIVATIONS][: len(KNOWN)] == [*KNOWN]


def test_one_seed_on_other_data_spoils_its_arm(seeded):
    text = (seeded / "sigmoid-seed2" / "summary.json").read_text()
    (seeded / "sigmoid-seed2" / "summary.json").write_text(
        text.replace('"data/fingerprint": "f"', '"data/fingerprint": "g"')
    )
    row = by_label(rows_of(seeded))["sigmoid"]
    assert row.final is None
    assert row.arm.mean("val/loss") is None
    assert "seed 2 trained on other data" in row.note


@pytest.mark.parametrize("field", ["weight_decay", "clip", "warmup"])
def test_a_number_that_only_the_activation_tells_is_part_of_the_arm(tmp_path, field):
    options: list[Any] = [{field: 0.1}, {field: 0.0}]
    write_arm(tmp_path, "gelu", GELU, **options[0])
    write_arm(tmp_path, "relu", [loss - 0.1 for loss in GELU], **options[1])
    rows = rows_of(tmp_path)
    assert [row.arm.label for row in rows] == [f"relu · {field}=0.0", f"gelu · {field}=0.1"]
    assert rows[0].note == "no gelu run to compare with, all else equal"


def test_a_number_that_another_setting_tells_is_not(tmp_path):
    for optimizer, decay, loss in (("adamw", 0.1, 4.0), ("sgd", 0.0, 4.5)):
        for activation in ("gelu", "relu"):
            name = f"{activation}-{optimizer}"
            write_run(tmp_path / name, activation, loss, optimizer=optimizer, weight_decay=decay)
    labels = [row.arm.label for row in rows_of(tmp_path)]
    assert labels == ["relu", "relu · optimizer=sgd", "gelu", "gelu · optimizer=sgd"]


def test_the_number_that_names_the_reference_tells(tmp_path):
    for decay, clip, loss in ((0.1, 1.0, 4.0), (0.0, 0.5, 4.5)):
        write_run(tmp_path / str(clip), "gelu", loss, weight_decay=decay, clip=clip)
    write_plan(tmp_path, study={"reference": "weight_decay=0.1"})
    rows = rows_of(tmp_path, reference=None)
    assert {row.reference for row in rows} == {"weight_decay=0.1"}
    assert sorted(row.is_reference for row in rows) == [False, True]


def test_arms_of_unlike_studies_are_named_by_their_study_and_compared_within_it(tmp_path):
    unlike: dict[str, Any] = {"clip": 0.5, "warmup": 0.2, "beta2": 0.95}
    for activation, loss in {"gelu": 4.0, "relu": 4.25}.items():
        write_run(tmp_path / "old" / activation, activation, loss, weight_decay=0.1)
    for activation, loss in {"relu": 3.0, "silu": 3.5}.items():
        write_run(tmp_path / "new" / activation, activation, loss, weight_decay=0.0, **unlike)
    study = load_study([tmp_path / "old", tmp_path / "new"])
    rows = compare_arms(study, "gelu")
    differences = {row.arm.label: row.final and row.final.mean for row in rows}
    assert differences == {"old/relu": 0.25, "new/relu": None, "old/gelu": 0.0, "new/silu": None}
    assert notes(rows, study) == ["new/relu and new/silu: no gelu run to compare with, all else equal."]
    table = next(section.content for section in sections(study, rows, "") if section.id == "studies")
    shown = {row.name: [cell.text for cell in row.cells] for row in table.rows}
    assert table.titles == ["old", "new"]
    assert shown.pop("model.activation") == ["gelu, relu", "relu, silu"]
    assert shown.pop("train.weight_decay") == ["0.1", "0"]
    assert shown == {"train.clip": ["–", "0.5"], "train.warmup": ["–", "0.2"], "train.beta2": ["–", "0.95"]}


def test_studies_in_folders_of_one_name_keep_their_seeds_together(tmp_path):
    for home in ("old", "new"):
        write_arm(tmp_path / home / "quick", "gelu", GELU)
        write_arm(tmp_path / home / "quick", "relu", [loss + 0.25 for loss in GELU])
    rows = rows_of(tmp_path / "old" / "quick", tmp_path / "new" / "quick")
    assert [(row.arm.seeds, row.verdict) for row in rows] == [(5, "worse"), (5, "worse"), (5, ""), (5, "")]


def test_a_seed_that_no_study_of_an_arm_has_is_missing_once(tmp_path):
    plan = {"model": {"activation": ["gelu"]}, "train": {"seed": [0, 1, 2]}}
    for seed, study in enumerate(("a", "b")):
        write_run(write_plan(tmp_path / study, **plan) / f"gelu-seed{seed}", "gelu", seed=seed)
    (row,) = rows_of(tmp_path / "a", tmp_path / "b")
    assert (row.arm.missing, row.arm.seeds, row.arm.trouble) == ((2,), 3, "seed 2 not begun")


def test_a_rate_that_diverged_for_one_seed_has_no_loss(seeded):
    tune(seeded, "gelu", {0.002: 5.0, 0.004: 4.5})
    for lr, loss in ((0.002, 5.5), (0.004, None)):
        write_run(seeded / "tune" / f"gelu-lr{lr}-seed1001", "gelu", loss, tokens=500, lr=lr, seed=1001)
    gelu = make_arms(load_study([seeded]))[1]
    assert gelu.losses_by_rate() == {0.002: {1000: 5.0, 1001: 5.5}}
