import shlex
from html import unescape
from pathlib import Path

import pytest
from helpers import GELU, rows_of, write_arm, write_plan, write_run

from errors import UserError
from study.report.compare import compare, print_table


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


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_place_for_a_report(seeded, out):
    with pytest.raises(UserError, match=r"is a folder\. Name a file, such as"):
        compare([seeded], out=Path(out))


@pytest.mark.parametrize("name", ["results.csv", "verdict.html", "loss.png"])
def test_what_stands_beside_a_report_is_no_name_for_it(seeded, tmp_path, name):
    with pytest.raises(UserError, match="stands beside the report"):
        compare([seeded], out=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_name_is_no_markup(tmp_path, capsys):
    for folder, activation in enumerate(("[red]", "x[/b]")):
        write_run(tmp_path / "study" / str(folder), activation)
    compare([tmp_path / "study"], reference="x[/b]")
    assert "vs x[/b]" in capsys.readouterr().out


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
