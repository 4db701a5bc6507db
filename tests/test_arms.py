import math
import shlex
from html import unescape
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_results import write_plan, write_run

from errors import UserError
from model.activations import ACTIVATIONS
from study.arms import KNOWN, make_arms
from study.compare import compare, print_table
from study.effects import NO_DIFFERENCE, compare_arms, judge
from study.results import load_study
from study.statistics import paired
from study.table import columns, cost_columns, course_columns, headline, notes, scope

GELU = [4.0, 4.0625, 3.9375, 4.03125, 3.96875]
SIGMOID_GAPS = [0.25, 0.25, 0.1875, 0.3125, 0.25]  # mean 0.25


def rows_of(*paths, reference="gelu"):
    return compare_arms(load_study(paths), reference)


def write_arm(study, activation, losses, prefix="", **options):
    for seed, loss in enumerate(losses):
        write_run(study / f"{prefix}{activation}-seed{seed}", activation, loss, seed=seed, **options)


def by_label(rows):
    return {row.arm.label: row for row in rows}


def cells(rows, columns_of):
    return {c.title: [c.text(row) for row in rows] for c in columns_of(rows)}


@pytest.fixture
def five(tmp_path):
    """Five arms of one seed whose losses lie at exact binary fractions."""
    for activation, loss in {"mish": 4.0625, "swiglu": 3.875, "gelu": 4.0, "sigmoid": 4.25, "relu": 4.125}.items():
        write_run(tmp_path / "study" / activation, activation, loss)
    return tmp_path / "study"


@pytest.fixture
def seeded(tmp_path):
    """Two arms of five seeds, each at its own learning rate."""
    study = tmp_path / "study"
    write_arm(study, "gelu", GELU, lr=0.004)
    write_arm(study, "sigmoid", [loss + gap for loss, gap in zip(GELU, SIGMOID_GAPS, strict=True)], lr=0.008)
    return study


def test_one_seed_each_by_hand(five):
    rows = rows_of(five)
    assert [row.arm.label for row in rows] == ["sigmoid", "relu", "gelu", "swiglu", "mish"]
    assert [row.final and row.final.mean for row in rows] == [0.25, 0.125, 0.0, -0.125, 0.0625]
    assert headline(rows) == "lowest validation loss: swiglu 3.875 nats/token; sigmoid is 0.250 above gelu"
    assert scope(rows).endswith("; one seed each: no interval, no verdict")
    assert notes(rows) == []
    titles = [c.title for c in columns(rows)]
    assert not {"seeds", "sd", "95 % interval", "p (Holm)", "verdict"} & set(titles)


def test_an_arm_of_five_seeds_by_hand(seeded):
    rows = rows_of(seeded)
    assert [row.arm.label for row in rows] == ["sigmoid", "gelu"]  # a rate of its own makes no other arm
    row = rows[0]
    assert row.arm.mean("val/loss") == 4.25
    assert row.arm.sd("val/loss") == pytest.approx(math.sqrt((0 + 0.0625**2 + 0.125**2 + 0.09375**2 + 0.03125**2) / 4))
    assert row.final is not None
    truth = stats.ttest_1samp(SIGMOID_GAPS, 0)
    interval = truth.confidence_interval()
    assert row.final.mean == 0.25
    assert (row.final.low, row.final.high) == pytest.approx((interval.low, interval.high))
    assert row.final.high - 0.25 == pytest.approx(2.776445 * stats.sem(SIGMOID_GAPS), rel=1e-6)
    assert row.p == pytest.approx(truth[1])  # the only comparison
    assert row.verdict == "worse"
    assert headline(rows) == "worse than gelu: sigmoid (+0.250 ± 0.055)"
    assert "5 seeds, paired" in scope(rows)
    assert "learning rates 0.004 to 0.008" in scope(rows)  # tuned by none
    assert cells(rows, columns)["95 % interval"] == ["[+0.195, +0.305]", "-"]


def test_text_noise_is_the_bootstrap_of_gaps_averaged_over_seeds(seeded):
    draw = np.random.default_rng(0)
    level, gaps = draw.normal(4, 1, 512), draw.normal(0.25, 0.1, (5, 512))
    for seed in range(5):
        np.save(seeded / f"gelu-seed{seed}" / "val_windows.npy", level + seed)
        np.save(seeded / f"sigmoid-seed{seed}" / "val_windows.npy", level + seed + gaps[seed])
    row = rows_of(seeded)[0]
    error = gaps.mean(axis=0).std() / math.sqrt(512)  # the windows are independent
    assert row.noise == pytest.approx(stats.norm.ppf(0.975) * error, rel=0.2)
    assert cells([row], columns)["text noise"] == [f"±{row.noise:.3f}"]
    (seeded / "gelu-seed3" / "val_windows.npy").unlink()
    assert rows_of(seeded)[0].noise is None


def test_an_arm_equal_to_its_reference_to_the_last_bit_is_no_arm(tmp_path):
    write_arm(tmp_path / "study", "gelu", GELU)
    write_arm(tmp_path / "study", "relu", GELU)
    row = by_label(rows_of(tmp_path / "study"))["relu"]
    assert row.final is None
    assert "to the last bit" in row.note


def test_holm_is_over_the_comparisons_of_the_table(seeded):
    alone = by_label(rows_of(seeded))["sigmoid"].p
    write_arm(seeded, "relu", [loss + gap for loss, gap in zip(GELU, [0.5, -0.5, 0.25, 0, 0], strict=True)])
    rows = by_label(rows_of(seeded))
    assert rows["sigmoid"].p == pytest.approx(2 * alone)
    assert math.isnan(rows["gelu"].p)
    assert "Holm over 2 comparisons" in scope([*rows.values()])
    assert rows["relu"].verdict == "not shown"
    assert notes([*rows.values()]) == [f"relu: {rows['relu'].reason}."]
    assert headline([*rows.values()]).endswith("not shown either way: relu")


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([0.020, 0.021, 0.019, 0.020, 0.020], "worse"),
        ([-0.020, -0.021, -0.019, -0.020, -0.020], "better"),
        ([0.001, 0.002, -0.001, 0.000, 0.001], NO_DIFFERENCE),
        ([0.004, 0.004, 0.005, 0.004, 0.004], NO_DIFFERENCE),  # surely above zero, and surely too little to matter
        ([0.009, 0.012, 0.008, 0.011, 0.009], "not shown"),  # above zero, and perhaps enough to matter
        ([0.06, -0.05, 0.03, -0.02, 0.01], "not shown"),
        ([0.2, 0.2, 0.2, 0.2], "not shown"),  # four seeds
    ],
)
def test_the_verdict_on_an_arm(gaps, expected):
    effect = paired(gaps)
    verdict, reason = judge(effect, effect.p)
    assert verdict == expected
    mirrored, mirrored_reason = judge(paired([-gap for gap in gaps]), effect.p)
    assert mirrored == {"worse": "better", "better": "worse"}.get(expected, expected)
    assert reason
    assert mirrored_reason
    assert ("5 seeds or more, not 4" in reason) == (len(gaps) == 4)


def test_how_a_difference_comes_about_by_hand(tmp_path):
    # Both losses fall by 0.1 a tenth of the budget, the arm's 0.25 above: 4.5 is reached at 750 instead of 500 tokens.
    for activation, loss in {"relu": 4.25, "gelu": 4.0, "silu": 3.9}.items():
        write_arm(tmp_path, activation, [loss, loss + 0.5])
    rows = rows_of(tmp_path)
    relu, _, silu = rows
    assert relu.early is not None
    assert relu.change is not None
    assert relu.area is not None
    assert [effect.mean for effect in (relu.early, relu.change, relu.area)] == pytest.approx([0.25, 0, 0.25])
    assert [relu.reach[share].ratio for share in (0.5, 0.75)] == pytest.approx([1.5, 4 / 3])
    assert (relu.reach[1.0].ratio, relu.reach[1.0].never) == (None, 2)
    assert silu.reach[1.0].ratio == pytest.approx(0.9)
    shown = cells(rows, course_columns)
    assert shown["to 100 %"] == ["never", "×1.00", "×0.90"]
    assert shown["to 50 %"] == ["×1.50", "×1.00", "×0.80"]
    assert shown["at 25 %"][1] == "0"


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
        (["gelu-2", "gelu-8", "relu-2", "relu-8"], "tanh"),
        (["gelu-2", "gelu-8", "relu-2"], "relu · n_layer=8 and tanh"),
        (["gelu-2", "relu-2"], "gelu · n_layer=8, relu · n_layer=8 and tanh"),
        (["gelu-2", "relu-8"], "gelu · n_layer=8, relu · n_layer=2 and tanh"),
        (["gelu-2"], "gelu · n_layer=8, relu and tanh"),
    ],
)
def test_arms_that_no_run_has_begun_of_are_named_by_what_sets_them_apart(tmp_path, begun, absent):
    axes = {"activation": ["gelu", "relu", "tanh"], "n_layer": [2, 8], "context": [128]}
    write_plan(tmp_path, model=axes, train={"seed": [0, 1]})
    for name in begun:
        activation, n_layer = name.split("-")
        config = write_run(tmp_path / name, activation) / "config.toml"
        config.write_text(config.read_text().replace("n_layer = 2", f"n_layer = {n_layer}"))
    study = load_study([tmp_path])
    assert notes(compare_arms(study, "gelu"), study)[-1] == f"{absent}: no run has begun."


def test_where_one_activation_is_studied_absent_arms_are_named_by_the_rest(tmp_path):
    write_plan(tmp_path, model={"activation": "gelu"}, train={"momentum": [0.5, 0.9], "beta1": [0.8, 0.9], "seed": 0})
    write_run(tmp_path / "a", "gelu", momentum=0.5, beta1=0.8)
    study = load_study([tmp_path])
    assert notes(compare_arms(study, "gelu"), study) == [
        "gelu · momentum=0.5 · beta1=0.9, gelu · momentum=0.9 · beta1=0.8 and gelu · momentum=0.9 · beta1=0.9: "
        "no run has begun."
    ]


def test_the_five_come_first_in_the_registry_too():
    assert [*ACTIVATIONS][: len(KNOWN)] == [*KNOWN]


def test_an_incomplete_reference_leaves_nothing_to_compare_with(seeded):
    (seeded / "gelu-seed4" / "summary.json").unlink()
    rows = by_label(rows_of(seeded))
    assert rows["sigmoid"].final is None
    assert rows["sigmoid"].note == "the gelu runs to compare with are not whole"
    assert headline([*rows.values()]) == "validation loss of sigmoid: 4.250 nats/token"


def test_seeds_that_do_not_pair_are_refused(tmp_path):
    write_arm(tmp_path, "gelu", [4.0, 3.5])
    write_run(tmp_path / "relu-10", "relu", 4.0, seed=10)
    relu = by_label(rows_of(tmp_path))["relu"]
    assert relu.final is None
    assert "the seeds do not pair" in relu.note


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"fingerprint": "g"}, "relu: trained on other data than gelu, so the losses do not compare."),
        (
            {"tokens": 2000},
            "relu · tokens=2000: trained on 2,000 tokens and gelu on 1,000, so the losses do not compare.",
        ),
    ],
)
def test_other_data_and_other_budgets_do_not_compare(tmp_path, odd, reason):
    write_run(tmp_path / "gelu", "gelu")
    write_run(tmp_path / "silu", "silu", 4.5)
    write_run(tmp_path / "relu", "relu", 1.0, **odd)
    rows = rows_of(tmp_path)
    assert [row.final and row.final.mean for row in rows] == [None, 0.0, 0.5]
    # Where the budget varies it is a part of every label.
    assert [note.replace(" · tokens=1000", "") for note in notes(rows)] == [reason]
    assert "lowest" not in headline(rows)


def test_one_seed_on_other_data_spoils_its_arm(seeded):
    text = (seeded / "sigmoid-seed2" / "summary.json").read_text()
    (seeded / "sigmoid-seed2" / "summary.json").write_text(
        text.replace('"data/fingerprint": "f"', '"data/fingerprint": "g"')
    )
    row = by_label(rows_of(seeded))["sigmoid"]
    assert row.final is None
    assert row.arm.mean("val/loss") is None
    assert "seed 2 trained on other data" in row.note


def test_arms_pair_by_what_else_varies(tmp_path):
    for momentum, gelu, relu in ((0.5, 4.0, 4.25), (0.9, 3.5, 4.0)):
        write_run(tmp_path / f"gelu-{momentum}", "gelu", gelu, momentum=momentum)
        write_run(tmp_path / f"relu-{momentum}", "relu", relu, momentum=momentum)
    rows = by_label(rows_of(tmp_path))
    assert [*rows] == ["relu · momentum=0.5", "relu · momentum=0.9", "gelu · momentum=0.5", "gelu · momentum=0.9"]
    assert [row.final and row.final.mean for row in rows.values()] == [0.25, 0.5, 0, 0]
    # Any part of a label can be the reference.
    rows = by_label(rows_of(tmp_path, reference="momentum=0.9"))
    assert [row.final and row.final.mean for row in rows.values()] == [0.25, 0, 0.5, 0]


def test_of_several_references_the_one_of_the_same_budget_rate_and_study_is_taken(tmp_path):
    write_run(tmp_path / "a" / "gelu", "gelu", 4.0)
    write_run(tmp_path / "a" / "long", "gelu", 3.0, tokens=2000)
    write_run(tmp_path / "a" / "relu", "relu", 3.5, tokens=2000)
    rows = by_label(rows_of(tmp_path / "a"))
    assert rows["relu · tokens=2000"].final is not None
    assert rows["relu · tokens=2000"].final.mean == 0.5
    for study, lr, loss in (("b", 0.1, 4.0), ("b", 0.2, 4.5), ("c", 0.1, 3.0)):
        write_run(tmp_path / study / f"gelu-{lr}", "gelu", loss, lr=lr)
        write_run(tmp_path / study / f"relu-{lr}", "relu", loss + 0.25, lr=lr)
    rows = rows_of(tmp_path / "b", tmp_path / "c")
    assert {row.arm.label for row in rows} >= {"relu · lr=0.1 · b", "relu · lr=0.2 · b", "relu · lr=0.1 · c"}
    assert {row.final and row.final.mean for row in rows} == {0.25, 0}


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


def test_studies_in_folders_of_one_name_keep_their_seeds_together(tmp_path):
    for home in ("old", "new"):
        write_arm(tmp_path / home / "quick", "gelu", GELU)
        write_arm(tmp_path / home / "quick", "relu", [loss + 0.25 for loss in GELU])
    rows = rows_of(tmp_path / "old" / "quick", tmp_path / "new" / "quick")
    assert [(row.arm.seeds, row.verdict) for row in rows] == [(5, "worse"), (5, "worse"), (5, ""), (5, "")]


def test_a_seed_that_either_of_two_studies_lacks_is_missing(tmp_path):
    for study, seeds in (("a", [0, 1, 2]), ("b", [3, 4, 5])):
        plan = {"model": {"activation": ["gelu", "relu"]}, "train": {"seed": seeds}}
        folder = write_plan(tmp_path / study, **plan)
        for seed in seeds[: 3 if study == "a" else 2]:
            write_run(folder / f"gelu-seed{seed}", "gelu", seed=seed)
            write_run(folder / f"relu-seed{seed}", "relu", seed=seed)
    rows = rows_of(tmp_path / "a", tmp_path / "b")
    assert [row.arm.trouble for row in rows] == ["seed 5 not begun"] * 2


def test_a_seed_that_one_study_has_is_missing_in_no_other_and_one_that_neither_has_is_so_once(tmp_path):
    plan = {"model": {"activation": ["gelu"]}, "train": {"seed": [0, 1, 2]}}
    for seed, study in enumerate(("a", "b")):
        write_run(write_plan(tmp_path / study, **plan) / f"gelu-seed{seed}", "gelu", seed=seed)
    (row,) = rows_of(tmp_path / "a", tmp_path / "b")
    assert (row.arm.missing, row.arm.seeds, row.arm.trouble) == ((2,), 3, "seed 2 not begun")


def test_a_study_that_is_called_as_the_reference_is_not_the_reference(tmp_path):
    for study, loss in (("gelu", 4.0), ("other", 3.0)):
        write_run(tmp_path / study / "gelu", "gelu", loss)
        write_run(tmp_path / study / "relu", "relu", loss + 0.25)
    rows = by_label(rows_of(tmp_path / "gelu", tmp_path / "other"))
    assert {label: row.final and row.final.mean for label, row in rows.items()} == {
        "relu · gelu": 0.25,
        "relu · other": 0.25,
        "gelu · gelu": 0,
        "gelu · other": 0,
    }


def test_without_the_reference_the_first_activation_takes_its_place(tmp_path):
    for activation, loss in {"silu": 4.5, "relu": 4.0}.items():
        write_run(tmp_path / activation, activation, loss)
    rows = rows_of(tmp_path)
    assert [(row.arm.label, row.reference, row.final and row.final.mean) for row in rows] == [
        ("relu", "relu", 0),
        ("silu", "relu", 0.5),
    ]
    assert notes(rows, load_study([tmp_path])) == []
    write_plan(tmp_path, model={"activation": ["relu", "silu", "gelu"]}, study={"reference": "gelu"})
    assert "No arm is gelu, the study's reference: differences are to relu." in notes(rows, load_study([tmp_path]))


def tune(study, activation, losses, seeds=(1000,)):
    for lr, loss in losses.items():
        for seed in seeds:
            folder = study / "tune" / f"{activation}-lr{lr}-seed{seed}"
            write_run(folder, activation, loss, tokens=500, lr=lr, seed=seed)


def test_the_tuned_and_the_shared_learning_rate(seeded):
    tune(seeded, "gelu", {0.002: 5.0, 0.004: 4.5, 0.008: 4.75}, seeds=(1000, 1001))
    tune(seeded, "sigmoid", {0.002: 6.0, 0.004: 5.5, 0.008: 5.0}, seeds=(1000, 1001))
    rows = rows_of(seeded)
    sigmoid, gelu = rows
    assert (sigmoid.arm.lr, sigmoid.arm.edge) == (0.008, True)
    assert (gelu.arm.lr, gelu.arm.edge) == (0.004, False)
    assert sigmoid.shared_lr == 0.004  # the reference's best, where sigmoid is not at its own
    assert sigmoid.shared is not None
    assert (sigmoid.shared.mean, sigmoid.shared.n) == (1.0, 2)
    shown = cells(rows, cost_columns)
    assert shown["tuned lr"] == ["0.008 (edge of grid)", "0.004"]
    assert shown["shared lr 0.004"][1] == "0"
    assert "each arm at its own learning rate" in scope(rows)


def test_references_with_rates_of_their_own_are_told_line_by_line(tmp_path):
    for optimizer, best in (("adamw", 0.004), ("sgd", 1.0)):
        for activation, gap in (("gelu", 0.0), ("relu", 0.5)):
            options = {"optimizer": optimizer, "weight_decay": 0.1}
            write_run(tmp_path / f"{activation}-{optimizer}", activation, 4.0 + gap, lr=best, **options)
            for rate in (best / 2, best, best * 2):
                folder = tmp_path / "tune" / f"{activation}-{optimizer}-{rate}"
                write_run(folder, activation, 5.0 + gap + (rate != best), tokens=500, lr=rate, seed=1000, **options)
    assert cells(rows_of(tmp_path), cost_columns)["shared lr"] == ["+0.500 at 0.004", "+0.500 at 1", "0", "0"]


def test_a_rate_that_diverged_for_one_seed_has_no_loss(seeded):
    tune(seeded, "gelu", {0.002: 5.0, 0.004: 4.5})
    write_run(seeded / "tune" / "x", "gelu", None, tokens=500, lr=0.004, seed=1001)
    gelu = make_arms(load_study([seeded]))[1]
    assert gelu.tuned() == {0.002: {1000: 5.0}, 0.004: {}}
    assert by_label(rows_of(seeded))["sigmoid"].shared is None


def test_a_loss_beyond_any_perplexity_is_a_line_of_the_table_as_others(tmp_path):
    write_run(tmp_path / "gelu", "gelu", 4.0)
    write_run(tmp_path / "relu", "relu", 690.0)
    summary = tmp_path / "relu" / "summary.json"
    summary.write_text(summary.read_text().replace('"val/loss": 690.0', '"val/loss": 79810.5'))
    assert cells(rows_of(tmp_path), columns)["perplexity"] == ["inf", "54.60"]


def test_without_tuning_runs_there_are_no_columns_for_them(seeded):
    assert [c.title for c in cost_columns(rows_of(seeded))] == ["parameters", "MFLOP/token", "tokens/s"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_printed_table_fits_the_terminal(seeded, capsys, monkeypatch, width):
    monkeypatch.setenv("NO_COLOR", "1")
    write_arm(seeded, "[bold]x", GELU)
    write_arm(seeded, "relu", [loss + 0.001 for loss in GELU])
    rows = rows_of(seeded)
    print_table(rows, ["a remark"], width)
    out = capsys.readouterr().out.splitlines()
    grid = out[: out.index("a remark")]
    assert max(map(len, grid)) <= width
    assert ("p (Holm)" in grid[0]) == (width == 140)
    assert "verdict" in grid[0]
    assert any("worse" in line and line.startswith("sigmoid") for line in grid)
    assert any("no difference" in line for line in grid)
    assert any("that matters" in line for line in grid)
    assert any(line.startswith("[bold]x") for line in grid)


def test_a_reference_that_is_none_of_the_arms_is_refused_where_it_was_asked_for(seeded, tmp_path):
    with pytest.raises(UserError, match=r"unknown reference 'sigmoi'. Did you mean 'sigmoid'\? Allowed: sigmoid, gelu"):
        compare([seeded], "sigmoi", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    compare([seeded], "sigmoid", tmp_path / "report.html")


def test_comparing_writes_the_report_and_the_csv_beside_each_other(seeded, capsys):
    assert [row.verdict for row in compare([seeded])] == ["worse", ""]
    assert (seeded / "report.html").exists()
    assert (seeded / "results.csv").read_text().count("\n") == 11
    assert "worse than gelu: sigmoid" in capsys.readouterr().out


def test_the_report_says_how_to_train_again_and_which_plugin_it_takes(tmp_path, capsys):
    def command(study, **options):
        compare([study], **options)
        text = (study / "report.html").read_text()
        return unescape(text[text.index("python train.py") :].split("</pre>")[0])

    for n in (2, 10):
        write_run(tmp_path / "single runs" / f"gelu-{n}", "gelu", seed=n)
    (tmp_path / "single runs" / ".copying").mkdir()  # left by a process that died
    (tmp_path / "single runs" / ".copying" / "config.toml").touch()
    assert [shlex.split(line)[2:] for line in command(tmp_path / "single runs").splitlines()] == [
        [f"{tmp_path}/single runs/gelu-{n}/config.toml", f"--out=runs/again-gelu-{n}"] for n in (2, 10)
    ]
    for home in ("old", "new"):
        write_run(write_plan(tmp_path / home / "quick", model={"activation": ["gelu"]}) / "gelu", "gelu")
    compare([tmp_path / "old" / "quick", tmp_path / "new" / "quick"], out=tmp_path / "report.html")
    told = unescape((tmp_path / "report.html").read_text())
    assert all(
        f"{home}/quick/study.toml --out=runs/again-quick-{i}" in told for i, home in enumerate(("old", "new"), 1)
    )
    study = tmp_path / "study"
    write_run(write_plan(study, model={"activation": ["gelu", "sine"]}) / "gelu", "gelu")
    plain = f"python train.py {study / 'study.toml'} --out=runs/again-study"
    assert command(study) == plain
    write_run(study / "sine", "sine")
    assert command(study) == f"{plain} --plugin=FILE\n# FILE defines sine: a plugin, which the folder does not hold"
    assert command(study, plugin=tmp_path / "acts.py") == f"{plain} --plugin={tmp_path / 'acts.py'}"
