import math

import numpy as np
import pytest
from helpers import GELU, SIGMOID_GAPS, by_label, cells, rows_of, write_arm, write_plan, write_run
from scipy import stats

from study.judge.effects import table_verdict
from study.judge.results import load_study
from study.judge.statistics import paired, seeds_to_decide
from study.report.sentences import headline, notes, scope
from study.report.table import difference_columns, main_columns


@pytest.fixture
def five(tmp_path):
    """Five arms of one seed whose losses lie at exact binary fractions."""
    for activation, loss in {"mish": 4.0625, "swiglu": 3.875, "gelu": 4.0, "sigmoid": 4.25, "relu": 4.125}.items():
        write_run(tmp_path / "study" / activation, activation, loss)
    return tmp_path / "study"


def test_one_seed_each_by_hand(five):
    rows = rows_of(five)
    assert [row.arm.label for row in rows] == ["sigmoid", "relu", "gelu", "swiglu", "mish"]
    assert [row.final and row.final.mean for row in rows] == [0.25, 0.125, 0.0, -0.125, 0.0625]
    assert headline(rows) == "one seed cannot tell: sigmoid ends 0.25 nats above gelu; a verdict needs 5 seeds"
    assert scope(rows).endswith("; one seed each")
    assert notes(rows) == []
    titles = [c.title for c in main_columns(rows)]
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
    assert headline(rows) == "sigmoid ends 0.25 nats above gelu (95 % interval 0.20 to 0.30, 5 seeds)"
    assert "5 seeds, paired" in scope(rows)
    assert "learning rates 0.004 to 0.008" in scope(rows)  # tuned by none
    assert cells(rows, main_columns)["95 % interval"] == ["[+0.195, +0.305]", "-"]


def test_text_noise_is_the_bootstrap_of_gaps_averaged_over_seeds(seeded):
    draw = np.random.default_rng(0)
    level, gaps = draw.normal(4, 1, 512), draw.normal(0.25, 0.1, (5, 512))
    for seed in range(5):
        np.save(seeded / f"gelu-seed{seed}" / "val_windows.npy", level + seed)
        np.save(seeded / f"sigmoid-seed{seed}" / "val_windows.npy", level + seed + gaps[seed])
    row = rows_of(seeded)[0]
    error = gaps.mean(axis=0).std() / math.sqrt(512)  # the windows are independent
    assert row.noise == pytest.approx(stats.norm.ppf(0.975) * error, rel=0.2)
    assert cells([row], difference_columns)["text noise"] == [f"±{row.noise:.3f}"]
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
    assert rows["relu"].verdict == "undecided"
    final = rows["relu"].final
    assert final is not None
    assert rows["relu"].seeds_needed == seeds_to_decide(final, 0.01)
    assert headline([*rows.values()]).endswith("; relu is undecided")


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([0.020, 0.021, 0.019, 0.020, 0.020], "worse"),
        ([-0.020, -0.021, -0.019, -0.020, -0.020], "better"),
        ([0.001, 0.002, -0.001, 0.000, 0.001], "equal"),
        ([0.004, 0.004, 0.005, 0.004, 0.004], "equal"),  # surely above zero, and surely too little to matter
        ([0.009, 0.012, 0.008, 0.011, 0.009], "undecided"),  # above zero, and perhaps enough to matter
        ([0.06, -0.05, 0.03, -0.02, 0.01], "undecided"),
        ([0.2, 0.2, 0.2, 0.2], "undecided"),  # four seeds
    ],
)
def test_the_verdict_on_an_arm(gaps, expected):
    effect = paired(gaps)
    assert table_verdict(effect, 0.01, effect.p) == expected
    mirrored = table_verdict(paired([-gap for gap in gaps]), 0.01, effect.p)
    assert mirrored == {"worse": "better", "better": "worse"}.get(expected, expected)


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
    shown = cells(rows, difference_columns)
    assert shown["to 100 %"] == ["never", "×1.00", "×0.90"]
    assert shown["to 50 %"] == ["×1.50", "×1.00", "×0.80"]
    assert shown["at 25 %"][1] == "0"


def test_an_incomplete_reference_leaves_nothing_to_compare_with(seeded):
    (seeded / "gelu-seed4" / "summary.json").unlink()
    rows = by_label(rows_of(seeded))
    assert rows["sigmoid"].final is None
    assert rows["sigmoid"].note == "the gelu runs to compare with are not whole"
    assert headline([*rows.values()]) == "validation loss, nats per token: sigmoid 4.250"


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
    assert {row.arm.label for row in rows} >= {"b/relu · lr=0.1", "b/relu · lr=0.2", "c/relu · lr=0.1"}
    assert {row.final and row.final.mean for row in rows} == {0.25, 0}


def test_a_study_that_is_called_as_the_reference_is_not_the_reference(tmp_path):
    for study, loss in (("gelu", 4.0), ("other", 3.0)):
        write_run(tmp_path / study / "gelu", "gelu", loss)
        write_run(tmp_path / study / "relu", "relu", loss + 0.25)
    rows = by_label(rows_of(tmp_path / "gelu", tmp_path / "other"))
    assert {label: row.final and row.final.mean for label, row in rows.items()} == {
        "gelu/relu": 0.25,
        "other/relu": 0.25,
        "gelu/gelu": 0,
        "other/gelu": 0,
    }


def test_where_all_are_the_reference_and_nobody_named_it_the_first_is_told_by_what_varies(tmp_path):
    for optimizer, loss in {"adamw": 4.0, "muon": 3.5}.items():
        write_run(tmp_path / optimizer, "gelu", loss, optimizer=optimizer)
    rows = rows_of(tmp_path, reference=None)
    assert [(row.reference, row.final and row.final.mean) for row in rows] == [
        ("optimizer=adamw", 0),
        ("optimizer=adamw", -0.5),
    ]
    write_plan(tmp_path, study={"reference": "gelu"})
    assert [row.reference for row in rows_of(tmp_path, reference=None)] == ["gelu", "gelu"]


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
