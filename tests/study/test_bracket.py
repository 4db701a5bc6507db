"""Arms that train each seed at several learning rates: what is trained, what is read back, and how a study grows."""

import csv

import numpy as np
import pytest
from helpers import by_label, cells, records, rows_of, same_weights, write_plan, write_run
from scipy import stats

from errors import UserError
from study.judge.repetitions import are_repetitions, compare_repetitions
from study.judge.results import load_study
from study.plan.plan import make_plan
from study.plan.tuning import beyond_bracket, bracket
from study.report.compare import compare
from study.report.sentences import notes
from study.report.table import cost_columns, interval, main_columns
from study.run.protocol import run_study
from study.run.search import left_to_train
from training.config import tree as plain

RATES = [0.00141, 0.002, 0.00283]
PLAN = {
    "model": {"activation": ["relu", "gelu"]},
    "train": {"seed": [0, 1, 2, 3, 4], "tokens": 1000},
    "study": {"lr": [0.001, 0.002, 0.004]},
}
NOISE_RS = np.random.default_rng(0).normal(0, 0.01, (3, 5))
RELU_RS = 4.2 + np.array([[0.02], [0.0], [0.03]]) + NOISE_RS
GELU_RS = 4.0 + np.array([[0.03], [0.0], [0.01]]) + NOISE_RS[::-1]


def write_bracket(study, activation, losses_RS, rates=tuple(RATES)):
    """Write the runs of an arm at each rate with each seed; a loss of None is a run that stopped half-way."""
    for lr, losses in zip(rates, losses_RS, strict=True):
        for seed, loss in enumerate(losses):
            loss = None if loss is None else float(loss)
            write_run(study / f"{activation}-lr{lr:g}-seed{seed}", activation, loss, seed=seed, lr=lr)


def lowest(losses_RS):
    """The lowest value of the parabola through three means, by numpy."""
    a, b, c = np.polyfit(np.log2(RATES), np.mean(losses_RS, axis=1), 2)
    return c - b * b / (4 * a)


def pseudo(losses_RS):
    n = np.shape(losses_RS)[1]
    return [n * lowest(losses_RS) - (n - 1) * lowest(np.delete(losses_RS, seed, 1)) for seed in range(n)]


def test_a_bracket_lies_around_its_middle_a_factor_of_root_two_apart():
    assert bracket(0.002, 3) == RATES
    assert bracket(0.002, 5) == [0.001, *RATES, 0.004]
    assert bracket(0.002, 1) == [0.002]
    assert beyond_bracket(RATES, 0.002, 0.00283) == 0.004
    assert beyond_bracket([*RATES, 0.004], 0.002, 0.004) == 0.00566
    assert beyond_bracket(RATES, 0.002, 0.00141) == 0.001
    assert beyond_bracket(RATES, 0.002, 0.002) is None


def test_the_difference_of_bracketed_arms_is_that_of_their_lowest_points_left_one_out(tmp_path):
    study = write_plan(tmp_path / "study", **PLAN)
    write_bracket(study, "relu", RELU_RS)
    write_bracket(study, "gelu", GELU_RS)
    rows = by_label(rows_of(study))
    assert [*rows] == ["relu", "gelu"]  # the learning rate makes no other arm
    differences = np.subtract(pseudo(RELU_RS), pseudo(GELU_RS))
    truth = stats.ttest_1samp(differences, 0).confidence_interval()
    final = rows["relu"].final
    assert final is not None
    assert (final.n, final.mean) == (5, pytest.approx(differences.mean()))
    assert (final.low, final.high) == pytest.approx((truth.low, truth.high))
    assert rows["relu"].verdict == "worse"
    a, b, _ = np.polyfit(np.log2(RATES), RELU_RS.mean(1), 2)
    assert rows["relu"].arm.lr == pytest.approx(2 ** (-b / (2 * a)))
    assert {run.lr for run in rows["relu"].arm.runs} == {0.002}  # curves are of the middle rate
    assert cells([*rows.values()], main_columns)["seeds"] == ["5", "5"]
    assert cells([*rows.values()], cost_columns)["parameters"] == ["54,321", "54,321"]


@pytest.mark.parametrize(
    ("losses_RS", "reason"),
    [
        (RELU_RS[[1, 0, 2]], "the lowest mean loss is not inside the rates that all seeds finished (0.00141, 0.002"),
        ([*RELU_RS[:2], [4.3, 4.3, None, 4.3, 4.3]], "seed 2 at lr 0.00283 unfinished at 500 of 1,000 tokens"),
        ([*RELU_RS[:2], [4.3, 4.3, 4.3, 4.3]], "seed 4 at lr 0.00283 not begun"),
    ],
)
def test_a_bracket_that_is_open_leaves_its_arm_undecided_and_says_why(tmp_path, losses_RS, reason):
    study = write_plan(tmp_path / "study", **PLAN)
    write_bracket(study, "relu", losses_RS)
    write_bracket(study, "gelu", GELU_RS)
    row = by_label(rows_of(study))["relu"]
    assert (row.final, row.verdict, row.arm.status) == (None, "undecided", "bracket open")
    assert reason in row.note


def test_a_fourth_rate_of_the_first_seeds_alone_is_left_out(tmp_path):
    study = write_plan(tmp_path / "study", **PLAN)
    write_bracket(study, "relu", RELU_RS)
    write_bracket(study, "gelu", [*GELU_RS, [3.0, 3.0]], rates=(*RATES, 0.004))
    row = by_label(rows_of(study))["relu"]
    assert row.final is not None
    assert row.final.mean == pytest.approx(np.mean(np.subtract(pseudo(RELU_RS), pseudo(GELU_RS))))


@pytest.fixture
def tree(tiny):
    """A study of one arm whose best rate is 0.0453: six steps a run."""
    train = {"tokens": 16 * 4 * 6, "eval_every": -1, "probes": 0}
    sections = plain(tiny(train=train, model={"n_layer": 1, "activation": "gelu"}))
    sections["train"]["seed"] = [0, 1]
    return sections | {"study": {"lr": [0.0113, 0.0453, 0.5], "tune_share": 1.0}}


def with_seeds(tree, *seeds):
    return tree | {"train": tree["train"] | {"seed": [*seeds]}}


def test_a_study_that_grew_holds_the_runs_of_one_that_began_with_all_seeds(tree, tmp_path, capsys):
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    assert run_study(tree, grown) == []
    names = {path.parent.name for path in grown.glob("*/summary.json")}
    assert names == {f"gelu-lr{lr}-seed{seed}" for lr in (0.032, 0.0453, 0.0641) for seed in (0, 1)}
    first = {path: path.stat().st_mtime_ns for path in grown.glob("*/summary.json")}
    (grown / "report.html").touch()  # somebody has looked

    more = with_seeds(tree, 0, 1, 2)
    left = left_to_train(make_plan(more), grown)["gelu"]
    assert (len(left.tuning), [run.train.seed for run in left.final]) == (0, [2, 2, 2])
    assert run_study(more, grown) == []
    assert run_study(more, whole) == []
    ours, theirs = ({p.parent.name for p in study.glob("*/summary.json")} for study in (grown, whole))
    assert ours == theirs
    for name in ours:
        assert records(grown / name) == records(whole / name)
        assert same_weights(grown / name, whole / name)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())  # finished runs stay

    study = load_study([grown])
    assert notes(rows_of(grown), study) == ["Grown after a look at the results: train.seed from [0, 1] to [0, 1, 2]."]
    with pytest.raises(UserError, match=r"lacks parts of:\n  gelu: seed 2"):
        run_study(tree, grown)
    fewer_rates = more | {"study": tree["study"] | {"lr": [0.0113, 0.0453, 0.6]}}
    with pytest.raises(UserError, match=r"gelu: study.lr = \[0.0113, 0.0453, 0.5\], not"):
        run_study(fewer_rates, grown)
    deeper = more | {"model": tree["model"] | {"n_layer": [1, 2]}}
    with pytest.raises(UserError, match="gelu: its runs would be named"):
        run_study(deeper, grown)
    with pytest.raises(UserError, match=r"study.bracket = 3, not 1"):
        run_study(more | {"study": tree["study"] | {"bracket": 1}}, grown)


def test_a_second_seed_renames_the_run_that_had_none_in_its_name(tree, tmp_path):
    single = {name: part for name, part in tree.items() if name != "study"}
    single["model"] = single["model"] | {"activation": ["gelu", "relu"]}
    folder = tmp_path / "study"
    assert run_study(single | {"train": single["train"] | {"seed": 0}}, folder) == []
    assert sorted(path.parent.name for path in folder.glob("*/summary.json")) == ["gelu", "relu"]
    before = records(folder / "gelu")
    assert run_study(with_seeds(single, 0, 1), folder) == []
    assert len([*folder.glob("*/summary.json")]) == 4
    assert records(folder / "gelu-seed0") == before


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        ({"bracket": 3}, r"study.bracket = 3 without study.lr: .* List rates in study.lr"),
        ({"lr": [1e-3, 2e-3, 4e-3], "bracket": 4}, "bracket = 4: the best rate is in the middle, so use 1, 3, 5 or 7"),
        ({"margin": 0.0}, "margin"),
        ({"margin": -0.1}, "margin"),
    ],
)
def test_a_bracket_without_a_grid_and_a_margin_of_nothing_are_refused(study, reason):
    with pytest.raises(UserError, match=reason):
        make_plan({"model": {"activation": ["relu", "gelu"]}, "study": study})


def test_repetitions_stand_side_by_side_with_their_mean(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shifts = {"a": 0.0, "b": 0.02, "c": 0.04}
    for place, (name, shift) in enumerate(shifts.items()):
        seeds = [10 * place + seed for seed in range(5)]
        tuning = {"study": PLAN["study"] | {"tune_seeds": [1000 + place]}}
        study = write_plan(tmp_path / name, **PLAN | {"train": PLAN["train"] | {"seed": seeds}} | tuning)
        for activation, losses_RS in (("relu", RELU_RS + shift), ("gelu", GELU_RS)):
            for lr, losses in zip(RATES, losses_RS.tolist(), strict=True):
                for seed, loss in zip(seeds, losses, strict=True):
                    write_run(study / f"{activation}-lr{lr:g}-seed{seed}", activation, loss, seed=seed, lr=lr)
    paths = [tmp_path / name for name in shifts]
    assert are_repetitions(paths)
    assert not are_repetitions([paths[0], paths[0]])  # the same seeds
    relu, gelu = compare_repetitions(paths)
    effects = [row.final.mean for row in relu.rows if row.final]
    assert np.subtract(effects, effects[0]) == pytest.approx([*shifts.values()])
    assert relu.mean is not None
    assert (relu.mean.n, relu.mean.mean) == (3, pytest.approx(np.mean(effects)))
    assert relu.mean.sd == pytest.approx(0.02)
    assert gelu.mean is None
    labels = [row.arm.label for row in compare(paths)]
    assert labels == [f"{study}/{name}" for name in ("gelu", "relu") for study in shifts]
    monkeypatch.setenv("COLUMNS", "160")
    capsys.readouterr()  # what a terminal of 80 columns shows, in two tables
    compare(paths)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("relu  ") and "worse" in line)
    assert line.rstrip().endswith(interval(relu.mean))
    assert "<h2>Repetitions</h2>" in (tmp_path / "a-and-b-and-c" / "report.html").read_text(encoding="utf-8")


def test_the_csv_says_of_each_run_what_the_table_says_of_its_arm(tmp_path):
    study = write_plan(tmp_path / "study", **PLAN)
    write_bracket(study, "relu", RELU_RS)
    write_bracket(study, "gelu", GELU_RS)
    (_, relu) = compare([study])
    with (study / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 30
    assert relu.final is not None
    for line in lines:
        if line["arm/label"] == "relu":
            assert (line["arm/verdict"], float(line["arm/difference"])) == ("worse", relu.final.mean)
        else:
            assert line["arm/difference"] == ""
