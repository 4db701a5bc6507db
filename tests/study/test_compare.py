import shlex
from html import unescape
from pathlib import Path

import pytest
from helpers import GELU, rows_of, write_arm, write_plan, write_run

from errors import UserError
from study.report.compare import compare, print_table


@pytest.mark.parametrize("width", [80, 150])
def test_the_printed_table_fits_the_terminal(seeded, capsys, monkeypatch, width):
    monkeypatch.setenv("NO_COLOR", "1")
    write_arm(seeded, "[bold]x", GELU)
    write_arm(seeded, "relu", [loss + 0.001 for loss in GELU])
    print_table(rows_of(seeded), ["a remark"], width)
    out = capsys.readouterr().out.splitlines()
    grid = out[: out.index("a remark")]
    assert max(map(len, grid)) <= width
    assert not any("…" in line for line in grid)  # no figure is cut
    titles = "\n".join(line for line in grid if line.startswith("activation"))
    assert all(title in titles for title in ("vs gelu", "val loss", "perplexity", "tokens/s"))  # in tables below
    # What decides is in the first table.
    assert all(title in grid[0] for title in ("verdict", "vs gelu", "95 % interval"))
    for start, part in (("sigmoid", "worse"), ("relu", "equal"), ("[bold]x", "-")):
        assert any(line.startswith(start) and part in line for line in grid), (start, part)


def test_a_reference_that_is_none_of_the_arms_is_refused_where_it_was_asked_for(seeded, tmp_path):
    with pytest.raises(UserError, match=r"unknown reference 'sigmoi'. Did you mean 'sigmoid'\? Allowed: gelu, sigmoid"):
        compare([seeded], "sigmoi", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    compare([seeded], "sigmoid", tmp_path / "report.html")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (".", r"is a folder\. Name a file, such as"),
        ("results.csv", "is written beside the report"),
        ("verdict.html", "is written beside the report"),
    ],
)
def test_a_place_that_cannot_be_a_report_s_is_refused(seeded, tmp_path, monkeypatch, out, reason):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=reason):
        compare([seeded], out=Path(out))
    assert sorted(tmp_path.iterdir()) == before


def test_comparing_writes_the_report_and_the_csv_beside_each_other(seeded, capsys):
    write_run(seeded / "odd", "x[/b]")  # a name is no markup
    assert [row.verdict for row in compare([seeded])] == ["", "worse", ""]
    assert sorted(path.name for path in seeded.iterdir() if path.is_file()) == ["report.html", "results.csv"]
    assert (seeded / "results.csv").read_text().count("\n") == 12
    out = capsys.readouterr().out
    assert "Sigmoid ends 0.25 nats above gelu" in out
    assert "x[/b]" in out


def test_the_report_says_how_to_train_again_and_which_plugin_it_takes(tmp_path):
    def commands(*studies, **options):
        compare(studies, out=tmp_path / "report.html", **options)
        text = (tmp_path / "report.html").read_text()
        return unescape(text[text.index("python train.py") :].split("</pre>")[0]).splitlines()

    for n in (2, 10):
        write_run(tmp_path / "single runs" / f"gelu-{n}", "gelu", seed=n)
    assert [shlex.split(line)[2:] for line in commands(tmp_path / "single runs")] == [
        [f"{tmp_path}/single runs/gelu-{n}/config.toml", f"--out=runs/again-{i}-gelu-{n}"] for i, n in ((1, 2), (2, 10))
    ]
    for home in ("old", "new"):
        study = write_plan(tmp_path / home / "quick", model={"activation": ["gelu", "sine"]})
        write_run(study / "gelu", "gelu")
    old, new = (tmp_path / home / "quick" for home in ("old", "new"))
    plain = [f"python train.py {study}/study.toml --out=runs/again-{i}-quick" for i, study in ((1, old), (2, new))]
    assert commands(old, new) == plain
    config = write_run(new / "sine", "sine") / "config.toml"
    config.write_text(config.read_text().replace("[model]\n", '[model]\nplugin = "my acts.py"\n'))
    assert commands(old, new) == [f"{line} '--plugin=my acts.py'" for line in plain]
