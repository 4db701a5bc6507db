"""What --dry-run says of a study before it is trained."""

import pytest
import torch

from study.plan import estimate
from study.plan.config import merge
from study.plan.estimate import dry_run

STUDY = """
[model]
activation = ["gelu", "silu"]
n_layer = 1
n_head = 2
d_model = 16
context = 16

[data]
corpus = "{corpus}"
tokenizer = "bytes"

[train]
seed = [0, 1, 2]
tokens = 3200
batch_size = 4
eval_every = 20
device = "cpu"
{more}
"""


@pytest.fixture
def study(tmp_path, corpus):
    """Return a function from further lines of the config to its tree."""

    def make(more=""):
        path = tmp_path / "study.toml"
        path.write_text(STUDY.format(corpus=corpus, more=more))
        return merge(path, {})

    return make


@pytest.mark.parametrize("cores", [1, 2, 3, 32])
def test_the_hours_are_those_of_all_runs_by_the_number_at_a_time(study, monkeypatch, capsys, cores):
    monkeypatch.setattr("study.run.executor.cores", lambda: cores)
    monkeypatch.setattr(estimate, "_measure", lambda *_: (10.0, 2.0, 5.0))
    tree = study("[study]\nlr = [1e-3, 2e-3, 4e-3]\ntune_share = 0.5")
    # a run has 50 steps and 5 scores (steps 0, 20, 40, the last, and the test split); a tuning run 25 and 2
    run, tuning = 10 + 50 * 2 + 5 * 5, 10 + 25 * 2 + 2 * 5
    counted = set()
    hours = dry_run(tree, "a folder/study.toml", counted)
    at_a_time = min(cores, 6)
    assert hours == pytest.approx((6 * run + 6 * tuning) / at_a_time / 3600)
    said = capsys.readouterr().out
    assert "gelu: 3 tuning runs, 3 runs, 32 tokens/s" in said
    assert f"estimated time of a folder/study.toml: {hours:.2f} h, {at_a_time} runs at a time" in said
    assert dry_run(tree, "again", counted) == 0


def test_a_cluster_is_reckoned_as_this_machine_and_the_line_says_so(study, monkeypatch, capsys):
    monkeypatch.setattr("study.run.executor.cores", lambda: 2)
    monkeypatch.setattr(estimate, "_measure", lambda *_: (10.0, 2.0, 5.0))
    hours = dry_run(study('[study]\nengine = "ray"'), "study.toml", set())
    assert f"{hours:.2f} h, 2 runs at a time on this machine alone" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "threads"), [("threads = 3", 3), ("", 2)])
def test_steps_are_timed_on_the_threads_that_a_run_has(study, monkeypatch, request, more, threads):
    request.addfinalizer(lambda: torch.set_num_threads(1))  # as conftest.py sets it
    seen, step = set(), estimate.train_step

    def timed(*arguments):
        seen.add(torch.get_num_threads())
        return step(*arguments)

    monkeypatch.setattr("study.run.executor.cores", lambda: 12)
    monkeypatch.setattr(estimate, "train_step", timed)
    assert dry_run(study(more), "study.toml", set()) > 0
    assert seen == {threads}
