import json

import pytest
from helpers import cells, rows_of, tune, write_run

from study.report.sentences import scope
from study.report.table import cost_columns, main_columns


def test_the_tuned_learning_rate(seeded):
    tune(seeded, "gelu", {0.002: 5.0, 0.004: 4.5, 0.008: 4.75}, seeds=(1000, 1001))
    tune(seeded, "sigmoid", {0.002: 6.0, 0.004: 5.5, 0.008: 5.0}, seeds=(1000, 1001))
    rows = rows_of(seeded)
    sigmoid, gelu = rows
    assert (sigmoid.arm.lr, sigmoid.arm.edge) == (0.008, True)
    assert (gelu.arm.lr, gelu.arm.edge) == (0.004, False)
    assert cells(rows, main_columns)["tuned lr"] == ["0.008 (edge)", "0.004"]
    assert "each arm at its own learning rate" in scope(rows)


def test_a_loss_beyond_any_perplexity_is_a_line_of_the_table_as_others(tmp_path):
    write_run(tmp_path / "gelu", "gelu", 4.0)
    write_run(tmp_path / "relu", "relu", 690.0)
    summary = tmp_path / "relu" / "summary.json"
    summary.write_text(summary.read_text().replace('"val/loss": 690.0', '"val/loss": 79810.5'))
    assert cells(rows_of(tmp_path), main_columns)["perplexity"] == ["inf", "54.60"]


@pytest.mark.parametrize(
    ("norms", "clip", "told"),
    [
        ([[0.5, 1.5, 2.0, None], [0.5, 0.5, 0.5, 2.0]], 1.0, ["46 %"]),  # 2 of 3 (one is no number), 1 of 4
        ([[1.0, 1.0], [0.5, 0.1]], 1, ["0 %"]),  # at the limit nothing changes
        ([[5.0, 5.0], [5.0, 5.0]], 0.0, None),  # 0: no clipping
        ([[5.0, 5.0], [None, None]], 1.0, None),  # one seed has none, and the other does not stand for it
    ],
)
def test_how_often_clipping_fired_is_the_share_of_recorded_steps_beyond_the_limit(tmp_path, norms, clip, told):
    for seed, of_seed in enumerate(norms):
        write_run(tmp_path / f"gelu-seed{seed}", "gelu", 4.0, seed=seed, clip=clip)
        path = tmp_path / f"gelu-seed{seed}" / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record, norm in zip(records, of_seed, strict=False):
            record["grad/norm"] = norm
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert cells(rows_of(tmp_path), cost_columns).get("clipped") == told


def test_utilisation_is_a_column_where_every_run_knows_it(tmp_path):
    for seed, share in enumerate((0.25, 0.35)):
        write_run(tmp_path / f"gelu-seed{seed}", "gelu", 4.0, seed=seed, summary={"perf/mfu": share})
        write_run(tmp_path / f"relu-seed{seed}", "relu", 4.0, seed=seed)
    assert cells(rows_of(tmp_path), cost_columns)["MFU"] == ["-", "30.0 %"]
    assert "MFU" not in cells(rows_of(*tmp_path.glob("relu-*"), reference=None), cost_columns)
