import json
import math

import pytest
import tomli_w

from errors import UserError
from study.results import headline, load_run, load_runs, notes, ordered, partner, print_table, table


def write_run(folder, activation="gelu", loss: float | None = 4.0, tokens=1000, fingerprint="f", summary=None, **train):
    """Write the folder of a run that ends at `loss`; with `loss=None` it was stopped half-way."""
    folder.mkdir(parents=True)
    config = {
        "data": {"corpus": "shakespeare", "tokenizer": "bytes"},
        "model": {"activation": activation, "n_layer": 2},
        "train": {"seed": 0, "tokens": tokens, "lr": 0.001, "threads": 1} | train,
        "wandb": {"mode": "disabled", "group": folder.name},
    }
    folder.joinpath("config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    end, records = loss or 4.5, []
    for step in range(1, 11 if loss else 6):
        value = end + (10 - step) / 10
        records.append({"step": step, "tokens": step * tokens // 10, "time": step, "train/loss": value + 0.1})
        if step % 2 == 0:
            records[-1] |= {"val/loss": value, "val/perplexity": math.exp(value), "val/bits_per_byte": value / 2}
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    if loss:
        final = {
            "status": "finished",
            "val/loss": loss,
            "val/perplexity": math.exp(loss),
            "val/bits_per_byte": loss / 2,
        }
        final |= {"params/total": 54_321, "perf/tokens_per_s": 1234.5, "data/fingerprint": fingerprint}
        final |= {"sample/prompt": "O Romeo", "sample/text": f"O Romeo, thou {activation}."}
        final |= {"environment": {"torch": "2.13.0", "device": "cpu", "threads": 1}}
        folder.joinpath("summary.json").write_text(json.dumps(final | (summary or {})), encoding="utf-8")
    return folder


@pytest.fixture
def study(tmp_path):
    """A study of five activations whose losses lie at exact binary fractions."""
    ends = {"mish": 4.0625, "swiglu": 3.875, "gelu": 4.0, "sigmoid": 4.25, "relu": 4.125}
    for activation, loss in ends.items():
        write_run(tmp_path / "study" / activation, activation, loss)
    return tmp_path / "study"


def test_a_run_folder_is_read_whole(tmp_path):
    run = load_run(write_run(tmp_path / "one", "relu", 4.0, seed=3))
    assert (run.name, run.activation, run.budget, run.status) == ("one", "relu", 1000, "finished")
    assert run.curve("val/loss") == [(200, 4.8), (400, 4.6), (600, 4.4), (800, 4.2), (1000, 4.0)]
    assert run.settings["train.seed"] == 3
    assert not {"model.activation", "train.threads", "wandb.group"} & set(run.settings)


def test_the_table_by_hand(study):
    rows = table(load_runs([study]))
    assert [row.label for row in rows] == ["sigmoid", "relu", "gelu", "swiglu", "mish"]
    assert [row.difference for row in rows] == [0.25, 0.125, 0.0, -0.125, 0.0625]
    assert {row.reference for row in rows} == {"gelu"}
    assert notes(rows) == []
    assert headline(rows) == (
        "lowest validation loss: swiglu 3.875 nats/token; sigmoid is 0.250 above gelu",
        "one seed each: no interval, no verdict",
    )


def test_without_the_reference_activation_the_first_run_takes_its_place(tmp_path):
    for activation, loss in {"silu": 4.5, "relu": 4.0}.items():
        write_run(tmp_path / activation, activation, loss)
    rows = table(load_runs([tmp_path]))
    assert [(row.label, row.reference, row.difference) for row in rows] == [("relu", "relu", 0), ("silu", "relu", 0.5)]


def test_runs_pair_by_what_else_varies(tmp_path):
    for seed, gelu, sigmoid in ((1, 4.0, 4.25), (2, 3.5, 4.0)):
        write_run(tmp_path / f"gelu-{seed}", "gelu", gelu, seed=seed)
        write_run(tmp_path / f"sigmoid-{seed}", "sigmoid", sigmoid, seed=seed)
    write_run(tmp_path / "relu-10", "relu", 4.0, seed=10)
    rows = {row.label: row for row in table(load_runs([tmp_path]))}
    assert [*rows] == [
        *("sigmoid · seed=1", "sigmoid · seed=2", "relu · seed=10", "gelu · seed=1", "gelu · seed=2"),
    ]
    assert rows["sigmoid · seed=1"].difference == 0.25
    assert rows["sigmoid · seed=2"].difference == 0.5
    assert rows["relu · seed=10"].difference is None
    assert notes([*rows.values()]) == ["relu · seed=10: no gelu run with the same seed."]
    finding, scope = headline([*rows.values()])
    assert finding == "lowest validation loss: gelu 3.750 nats/token; sigmoid is 0.375 above gelu"
    assert scope.startswith("means over 1 to 2 seeds")


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
    rows = table(load_runs([tmp_path]))
    assert [row.difference for row in rows] == [None, 0.0, 0.5]
    assert notes(rows) == [reason]
    assert "lowest" not in headline(rows)[0]


def test_of_several_references_the_comparable_one_is_taken(tmp_path):
    write_run(tmp_path / "a", "gelu", 4.0)
    long = write_run(tmp_path / "b", "gelu", 3.0, tokens=2000)
    relu = write_run(tmp_path / "c", "relu", 3.5, tokens=2000)
    runs = load_runs([tmp_path])
    other, note = partner(next(r for r in runs if r.folder == relu), runs, "gelu")
    assert other is not None
    assert (other.folder, note) == (long, "")


def test_unfinished_runs_are_shown_and_never_counted(study):
    write_run(study / "silu", "silu", loss=None)
    rows = table(load_runs([study]))
    row = next(row for row in rows if row.label == "silu")
    assert (row.run.status, row.run.final("val/loss"), row.difference) == ("unfinished", None, None)
    assert notes(rows) == ["silu: unfinished at 500 of 1,000 tokens, last validation loss 5.100."]
    assert headline(rows)[1].endswith("1 of 6 runs not finished")


def test_an_unfinished_reference_leaves_no_difference(tmp_path):
    write_run(tmp_path / "gelu", "gelu", loss=None)
    write_run(tmp_path / "relu", "relu")
    rows = table(load_runs([tmp_path]))
    assert [row.difference for row in rows] == [None, None]
    assert rows[0].note == "the gelu run to compare with is unfinished"


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_no_number_is_no_result(tmp_path, loss):
    run = load_run(write_run(tmp_path / "run", summary={"val/loss": loss}))
    assert run.status == "diverged"
    assert table([run])[0].difference is None


def test_a_last_line_cut_short_is_ignored(tmp_path):
    folder = write_run(tmp_path / "run")
    whole = load_run(folder).records
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 11, "note": "é'.encode()[:-1])
    assert load_run(folder).records == whole


def test_damage_elsewhere_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("{" + text)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        load_run(folder)


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: a run folder holds config\.toml"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run: a run folder holds config\.toml"):
        load_runs([tmp_path])
    with pytest.raises(UserError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / "config.toml").write_text("[train]\ntokens = 5\n")
    with pytest.raises(UserError, match=r"lacks model\.activation"):
        load_runs([tmp_path])


def test_a_run_named_twice_counts_once_and_equal_runs_are_told_apart(tmp_path):
    write_run(tmp_path / "a" / "gelu")
    write_run(tmp_path / "b" / "gelu")
    runs = load_runs([tmp_path / "a", tmp_path / "a" / "gelu", tmp_path / "b"])
    assert [row.label for row in table(runs)] == ["gelu (a/gelu)", "gelu (b/gelu)"]


def test_runs_are_listed_in_natural_order(tmp_path):
    for seed in (10, 2):
        write_run(tmp_path / f"tanh-{seed}", "tanh", seed=seed)
    write_run(tmp_path / "tanh-1", "relu", seed=1)
    assert [run.name for run in ordered(load_runs([tmp_path]))] == ["tanh-1", "tanh-2", "tanh-10"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_printed_table_fits_the_terminal(study, capsys, monkeypatch, width):
    monkeypatch.setenv("NO_COLOR", "1")
    write_run(study / "odd", "[bold]x")
    print_table(table(load_runs([study])), ["report: report.html"], width)
    *lines, remark, last = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert ("tokens/s" in lines[0]) == (width == 120)
    assert lines[1].split()[:3] == ["sigmoid", "4.250", "+0.250"]
    assert any(line.startswith("[bold]x") for line in lines)
    assert remark == "report: report.html"
    assert last.startswith("lowest validation loss: swiglu 3.875 nats/token; sigmoid is 0.250 above gelu; one seed")
