import json
import re
import tomllib

import numpy as np
import plotly.graph_objects
import pytest
import tomli_w
from helpers import ENDS, rows_of, write_run

from study.judge.effects import compare_arms
from study.judge.results import load_study
from study.report.claims_figures import FIGURES
from study.report.drawing import Point, end_name, mean_line, styles, thin
from study.report.figures import (
    by_block,
    depth_figure,
    difference_figure,
    final_figure,
    heat_maps,
    loss_figure,
    rate_figure,
)


def arms_of(study):
    return [row.arm for row in compare_arms(study, "gelu")]


def test_the_figures_are_valid_and_the_differences_right(tmp_path, tuned):
    for activation, loss in ENDS.items():
        write_run(tmp_path / activation, activation, loss)
    rows = compare_arms(load_study([tmp_path]), "gelu")
    for shown in (rows, compare_arms(load_study([tuned]), "gelu")):
        for draw in (loss_figure, difference_figure, final_figure, rate_figure):
            if found := draw(shown):
                plotly.graph_objects.Figure(found["data"], found["layout"])  # raises for what plotly does not know
                json.dumps(found, allow_nan=False)
    ends = {trace["name"]: trace["y"][-1] for trace in difference_figure(rows)["data"]}
    assert ends == {"sigmoid": 0.25, "relu": 0.125, "gelu": 0, "silu": 0.0625, "swiglu": -0.125}
    dots = {trace["name"]: trace["x"] for trace in final_figure(rows)["data"]}
    assert dots == {"sigmoid": [0.25], "relu": [0.125], "silu": [0.0625], "swiglu": [-0.125]}
    assert rate_figure(rows) == {}


def timed(study, *speeds):
    """Write an arm of a seed for each speed, in tokens per second: half of it up to 400 of the 1,000 tokens."""
    arm = study.name
    for seed, speed in enumerate(speeds):
        final = {"flops/token": 2.5e6, "perf/tokens_per_s": speed}
        folder = write_run(study.parent / f"{arm}-seed{seed}", arm, seed=seed, summary=final)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for record in records[1::2]:  # every 200 tokens
            record["perf/tokens_per_s"] = speed if record["tokens"] > 400 else speed / 2
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_loss_has_its_place_in_flops_and_in_seconds_of_training(tmp_path):
    timed(tmp_path / "gelu", 100, 120)
    timed(tmp_path / "relu", 200, 200)
    drawn = loss_figure(rows_of(tmp_path))
    assert drawn["costs"] == {"FLOPs": "training FLOPs", "seconds": "seconds of training"}
    for line in drawn["data"]:
        tokens, meta = np.array(line["x"]), line["meta"]
        seconds = []
        for path in tmp_path.glob(f"{meta['arm']}-*/metrics.jsonl"):
            records = [json.loads(text) for text in path.read_text().splitlines()]
            speeds = {r["tokens"]: r["perf/tokens_per_s"] for r in records if "perf/tokens_per_s" in r}
            one_by_one = np.cumsum([1 / next(speeds[at] for at in speeds if at > token) for token in range(1000)])
            seconds.append(one_by_one[tokens - 1])
        assert meta["seconds"] == pytest.approx(np.mean(seconds, axis=0), rel=1e-4)
        assert meta["FLOPs"] == pytest.approx(2.5e6 * tokens)


@pytest.mark.parametrize(
    ("environment", "speed", "reason"),
    [
        ({}, 100, ""),
        ({"stacked": True}, 100, "the runs of a stack share each step"),
        ({"device_name": "H200"}, 100, "the runs differ in device_name"),
        ({"threads": 2, "compiled": True}, 100, "the runs differ in threads and compiled"),
        ({"precision": "bf16"}, 100, ""),  # a setting, by which arms may be compared
        ({}, 130, "the runs of relu compute the same, but their speeds differ by a factor of 1.3"),
    ],
)
def test_seconds_are_offered_only_where_they_compare(tmp_path, environment, speed, reason):
    timed(tmp_path / "gelu", 100, 100)
    timed(tmp_path / "relu", 100, speed)
    path = tmp_path / "relu-seed1" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"environment": summary["environment"] | environment}))
    drawn = loss_figure(rows_of(tmp_path))
    assert ("seconds" in drawn["costs"]) == (not reason)
    assert reason in drawn["left_out"]
    assert all(("seconds" in line["meta"]) == (not reason) for line in drawn["data"])
    path.unlink()
    unfinished = loss_figure(rows_of(tmp_path))
    assert unfinished["costs"] == {}
    assert unfinished["left_out"] == "FLOPs and seconds are known once every run has finished."


def test_a_line_is_a_mean_as_far_as_all_seeds_have_come():
    curves = [[(1, 4.0), (2, 3.0), (3, 2.0)], [(1, 6.0), (2, 5.0)], [(0, 9.0), (1, 5.0), (2, 1.0)]]
    assert mean_line(curves) == [Point(1, 5.0, 4.0, 6.0, 3), Point(2, 3.0, 1.0, 5.0, 3)]
    assert mean_line([]) == []


def test_the_five_keep_their_colours_and_no_two_arms_look_alike(tmp_path):
    names = [*(f"a{i}" for i in range(30)), *ENDS]
    for name in names:
        write_run(tmp_path / "all" / name, name)
    look = styles(arms_of(load_study([tmp_path / "all"])))
    assert [look[name].color for name in ENDS] == [0, 1, 2, 3, 4]
    assert len(set(look.values())) == 35
    some = [tmp_path / "all" / name for name in ("gelu", *(f"a{i}" for i in range(7)))]
    assert {style.color for style in styles(arms_of(load_study(some))).values()} == set(range(8))
    for name in ("relu", "gelu"):
        for momentum in (0.5, 0.9):
            write_run(tmp_path / "two" / f"{name}-{momentum}", name, momentum=momentum)
    look = styles(arms_of(load_study([tmp_path / "two"])))
    assert [(style.color, style.dash) for style in look.values()] == [
        (1, "solid"),
        (1, "dash"),
        (2, "solid"),
        (2, "dash"),
    ]
    look = styles(arms_of(load_study([tmp_path / "two" / "gelu-0.5", tmp_path / "two" / "gelu-0.9"])))
    assert [style.color for style in look.values()] == [0, 1]  # of one activation the rest has the colours


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("gelu · n_layer=4", "gelu · n_layer=4"),
        ("gelu · tokenizer=bytes · head=sigmoid", "gelu · bytes · sigmoid"),  # what tells arms apart stands last
        ("gelu · tokenizer=bpe:4096 · head=normalized_sigmoid", "gelu · bpe:4096 · norma…"),
        ("a=very_long_activation_name", "a=very_long_activation_…"),
        ("gelu · no ffn_residual · ffn_bias", "gelu · no ffn_residual …"),
    ],
)
def test_a_long_name_is_shortened_to_its_values_before_it_is_cut(name, short):
    assert end_name(name) == short


def test_long_curves_are_thinned_from_end_to_end():
    points = [(i, float(i)) for i in range(12_345)]
    thinned = thin(points)
    assert len(thinned) == 1000
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert thin(points[:3]) == points[:3]


def test_measurements_by_block_and_step_are_means_over_seeds(probed):
    rows = compare_arms(load_study([probed]), "gelu")
    assert by_block(rows[0].arm.runs[0].records)["grad/blocks.*/rms"] == {
        2: {0: 2, 1: 4, 2: 8},
        10: {0: 10, 1: 20, 2: 40},
    }
    maps = heat_maps(rows)["maps"]
    assert list(maps) == ["grad/blocks.*/rms", "act/blocks.*/mean_share"]
    assert maps["grad/blocks.*/rms"]["arms"]["gelu"] == {
        "x": [2, 10],
        "z": [[6, 30], [12, 60], [24, 120]],
    }  # 1 + seed is 3 on average


def test_a_measurement_of_which_the_seeds_share_no_step_has_no_map(probed):
    for seed, path in enumerate(sorted(probed.glob("gelu*/metrics.jsonl"))):
        kept = [line for line in path.read_text().splitlines(True) if f'"step": {2 if seed else 10},' in line]
        path.write_text("".join(kept))
    maps = heat_maps(compare_arms(load_study([probed]), "gelu"))["maps"]
    assert [*maps["grad/blocks.*/rms"]["arms"]] == ["sigmoid"]


def test_the_gradient_against_depth_is_relative_to_the_last_block(probed):
    rows = compare_arms(load_study([probed]), "gelu")
    traces = [trace for trace in depth_figure(rows)["data"] if trace["meta"]["kind"] == "depth"]
    assert [trace["meta"]["arm"] for trace in traces] == ["sigmoid", "gelu"]
    assert (traces[0]["x"], traces[0]["y"]) == ([0, 0.5, 1], [0.25, 0.5, 1])
    (probed / "gelu-seed0" / "summary.json").unlink()  # killed on its way
    dead = probed / "gelu-seed1" / "metrics.jsonl"
    dead.write_text(re.sub(r'"grad/blocks.0/rms": [\d.]+', '"grad/blocks.0/rms": 0.0', dead.read_text()))
    traces = depth_figure(compare_arms(load_study([probed]), "gelu"))["data"]
    (gelu,) = [trace for trace in traces if trace["meta"]["kind"] == "depth" and trace["meta"]["arm"] == "gelu"]
    assert "mean of 3 seeds" in gelu["hovertemplate"]
    for path in probed.glob("*/metrics.jsonl"):
        path.write_text("")
    assert depth_figure(compare_arms(load_study([probed]), "gelu")) == {}


def test_what_the_heads_measure_is_drawn_against_the_vocabulary_as_the_mean_of_the_seeds_last_values(tmp_path):
    arms = {("softmax", "bytes"): 0.1, ("sigmoid", "bytes"): 0.2, ("softmax", "bpe:4096"): 0.3}
    for (head, tokenizer), value in arms.items():
        for seed in (0, 1):
            folder = write_run(
                tmp_path / f"{head}-{value}-seed{seed}", loss=4 + value, fingerprint=tokenizer, seed=seed
            )
            config = tomllib.loads((folder / "config.toml").read_text())
            config["model"]["head"], config["data"]["tokenizer"] = head, tokenizer
            (folder / "config.toml").write_text(tomli_w.dumps(config))
            records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for record, off in ((records[1], 0.5), (records[-1], 0.02 * seed)):
                record |= dict.fromkeys(("head/sum_sigma", "head/accuracy", "head/ece"), value + off)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = rows_of(tmp_path, reference="head=softmax")
    gap, *measured = [draw(rows) for _, draw, _ in FIGURES["vocabulary"]]
    assert [(trace["name"], trace["x"]) for trace in gap["data"]] == [("sigmoid", [257])]  # no reference itself
    assert len(measured) == 3
    for drawn in measured:
        plotly.graph_objects.Figure(drawn["data"], {**drawn["layout"]})
        points = {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in drawn["data"]}
        assert points == {"softmax": {257: 0.11, 4096: 0.31}, "sigmoid": {257: 0.21}}
    for folder in tmp_path.iterdir():
        lines = (folder / "metrics.jsonl").read_text().replace("head/", "tail/")
        (folder / "metrics.jsonl").write_text(lines)
    rows = rows_of(tmp_path, reference="head=softmax")
    assert [draw(rows) for _, draw, _ in FIGURES["vocabulary"][1:]] == [{}, {}, {}]  # without probes, none
