import numpy as np
import pytest
from helpers import GELU, plan, shifted, write_run, write_study

from errors import UserError
from study.judge.controls import CONTROLS, Control
from study.judge.results import read_result
from study.judge.verdicts import judge_claims, metric_at
from study.plan.plan import claims_in
from study.report.claims_page import report_claims


def judged(folder):
    (result,) = judge_claims(claims_in(folder))
    return result


@pytest.mark.parametrize(
    ("predicts", "gap", "expected"),
    [
        ("above", 0.1, "supported"),
        ("above", 0.0, "refuted"),
        ("above", 0.009, "undecided"),  # its interval excludes 0 and reaches 0.01
        ("below", -0.1, "supported"),
        ("below", 0.1, "refuted"),
    ],
)
def test_each_outcome_is_reached_when_the_rule_says_so(tmp_path, predicts, gap, expected):
    tree = plan({"predicts": predicts})
    write_study(tmp_path / "c0", tree, {"gelu": GELU, "sigmoid": shifted(gap)})
    one = judged(tmp_path)
    assert one.verdict == expected
    effect = one.findings[0].effect
    assert effect is not None
    assert (effect.n, effect.mean) == (5, pytest.approx(gap))


def test_with_a_seed_less_than_five_nothing_is_decided(tmp_path):
    tree = plan({"predicts": "above"})
    folder = write_study(tmp_path / "c0", tree, {"gelu": GELU, "sigmoid": shifted(0.1)})
    assert judged(tmp_path).verdict == "supported"
    for file in (folder / "sigmoid-seed3").iterdir():
        file.unlink()
    one = judged(tmp_path)
    assert one.verdict == "undecided"
    assert "seed 3 not begun" in one.findings[0].reason


def test_a_contrast_of_contrasts_by_hand(tmp_path):
    losses = {
        name: [GELU[s] + gap * (1 + s) for s in range(5)]
        for name, gap in {"gelu": 0, "sigmoid": 0.25, "relu": 0.5}.items()
    }
    terms = {
        "plus": [{"activation": "relu"}, {"activation": "gelu"}],
        "minus": [{"activation": "sigmoid"}, {"activation": "gelu", "at": 0.2}],
    }
    tree = plan({"predicts": "above"} | terms, activations=("gelu", "sigmoid", "relu"))
    write_study(tmp_path / "c0", tree, losses)
    effect = judged(tmp_path).findings[0].effect
    # relu − sigmoid is 0.25 (1 + seed); at a fifth of its budget a run of the fixture lies 0.8 above its end
    assert effect is not None
    assert (effect.mean, effect.n) == (pytest.approx(0.25 * 3 - 0.8), 5)
    assert effect.sd == pytest.approx(np.std([0.25 * (1 + s) for s in range(5)], ddof=1))


def test_a_metric_of_all_layers_is_their_mean_and_may_be_a_logarithm(tmp_path):
    run = read_result(write_run(tmp_path / "run"))
    for record in run.records:
        record |= {f"act/blocks.{i}/mean_share": record["step"] * (i + 1) for i in range(3)}
    assert metric_at(run, "act/blocks.*/mean_share", 1.0) == pytest.approx(10 * 2)
    assert metric_at(run, "act/blocks.1/mean_share", 0.5) == pytest.approx(5 * 2)
    assert metric_at(run, "act/blocks.*/mean_share", 1.0, log=True) == pytest.approx(np.log(20))
    with pytest.raises(ValueError, match="has no grad/depth"):
        metric_at(run, "grad/depth/log_slope", 1.0)


def test_a_share_of_the_budget_is_of_what_the_run_was_trained_on(tmp_path):
    run = read_result(write_run(tmp_path / "run"))
    for record in run.records[6:]:
        record["val/loss"] = None  # it diverged: an earlier loss does not stand in for the last
    assert metric_at(run, "val/loss", 0.5) == pytest.approx(metric_at(run, "val/loss", 0.4) - 0.1)
    with pytest.raises(ValueError, match="no val/loss at 100 %"):
        metric_at(run, "val/loss", 1.0)


@pytest.mark.parametrize(
    ("losses", "options", "reason"),
    [
        (GELU, {}, "equal to the last bit"),
        (shifted(0.1), {"fingerprint": "other"}, "other data or budgets"),
        (shifted(0.1), {"tokens": 900}, "other data or budgets"),
    ],
)
def test_what_does_not_compare_gets_no_verdict(tmp_path, losses, options, reason):
    write_study(tmp_path / "c0", plan({"predicts": "above"}), {"gelu": GELU})
    for seed, loss in enumerate(losses):
        write_run(tmp_path / "c0" / f"sigmoid-seed{seed}", "sigmoid", loss, seed=seed, **options)
    one = judged(tmp_path)
    assert one.verdict == "undecided"
    assert reason in one.findings[0].reason


def test_a_study_that_still_tunes_is_undecided_and_leaves_the_others(tmp_path, capsys):
    (tmp_path / "c1").mkdir()
    write_study(tmp_path / "c1", plan({"predicts": "above"}, name="C1"), {})
    write_run(tmp_path / "c1" / "tune" / "gelu")
    (tmp_path / "c1" / ".copying").mkdir()  # left by a process that died
    (tmp_path / "c1" / ".copying" / "config.toml").touch()
    write_study(tmp_path / "c2", plan({"predicts": "above"}), {"gelu": GELU, "sigmoid": shifted(0.1)})
    report_claims(tmp_path)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "C1 NOT DECIDED: “Worse” · it: no run has begun"
    assert second.startswith("C0 SUPPORTED: “Worse”")


def test_an_aside_takes_no_part_and_a_failed_control_withholds_the_verdict(tmp_path, monkeypatch):
    tree = plan({"predicts": "above"}, {"predicts": "below", "aside": True}, control="plain_net")
    write_study(tmp_path / "c0", tree, {"gelu": GELU, "sigmoid": shifted(0.1)})
    monkeypatch.setitem(CONTROLS, "plain_net", lambda: Control("it", {"relu": 1.1}, {"relu": 1.0}, {"relu": 0.2}))
    one = judged(tmp_path)
    assert (one.verdict, [finding.outcome for finding in one.findings]) == ("supported", ["supported", "opposite"])
    monkeypatch.setitem(CONTROLS, "plain_net", lambda: Control("it", {"relu": 1.3}, {"relu": 1.0}, {"relu": 0.2}))
    assert judged(tmp_path).verdict == "withheld"


def test_the_controls_hold_and_know_the_values_of_theory():
    for name, control in CONTROLS.items():
        assert control().ok, name
    assert CONTROLS["plain_net"]().expected == pytest.approx({"sigmoid": 0.391, "relu": 1.0, "gelu": 1.0355}, abs=1e-3)
    signs = {"sigmoid": 0.825, "softplus": 0.749, "relu": 0.603, "gelu": 0.560, "silu": 0.538, "tanh": 0.5}
    assert CONTROLS["sign_agreement"]().expected == pytest.approx(signs, abs=6e-4)


def test_the_report_prints_a_line_for_each_claim_and_escapes_its_words(tmp_path, capsys):
    losses = {"gelu": GELU, "sigmoid": shifted(0.1)}
    write_study(tmp_path / "c0", plan({"predicts": "above", "text": "<i>up</i>"}), losses)
    path = report_claims(tmp_path)
    line, end = capsys.readouterr().out.splitlines()
    assert line.startswith("C0 SUPPORTED: “Worse” · <i>up</i>: supported (+0.100 nats/token [+0.0")
    for part in (", margin 0.01", "n = 5", "54,321 parameters", "1,000 training tokens of shakespeare"):
        assert part in line
    assert end == f"report: {path}"
    page = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;worse&lt;/b&gt;" in page
    assert "<i>up</i>" not in page.split('id="figures"')[0]


def test_a_study_by_itself_has_its_verdict_beside_its_report(tmp_path):
    losses = {"gelu": GELU, "sigmoid": shifted(0.1)}
    folder = write_study(tmp_path / "c0", plan({"predicts": "above"}), losses)
    write_study(tmp_path / "c1", plan({"predicts": "below"}, name="C1"), losses)
    page = report_claims(folder).read_text(encoding="utf-8")
    assert 'href="report.html"' in page
    assert sorted(path.name for path in folder.glob("*.html")) == ["verdict.html"]
    with pytest.raises(UserError, match="holds no study of a claim"):
        report_claims(tmp_path / "c0" / "gelu-seed0")
