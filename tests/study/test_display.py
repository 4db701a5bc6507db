import pytest

from study.run.display import StudyDisplay
from study.run.job import Job
from training.progress import Display


@pytest.fixture
def jobs(tiny, tmp_path):
    """Two runs of 20 steps each; one of them has trained 5 steps."""
    return [Job("relu", tiny(), tmp_path / "relu", record={"step": 5}), Job("gelu", tiny(), tmp_path / "gelu")]


def test_without_a_terminal_each_validation_loss_is_a_plain_line(jobs, capsys):
    with Display("one", 0, 20) as display:
        display.update({"step": 2, "train/loss": 3.0})
        display.update({"step": 8, "val/loss": 2.5})
    with StudyDisplay("study", jobs) as display:
        assert display.seconds_left() is None
        for job in jobs:
            job.status = "running"
            display.follow(job, [{"step": 6, "time": 1.0}, {"step": 8, "time": 2.0}])
        display.follow(jobs[0], [{"step": 8, "time": 2.0, "val/loss": 2.25}])
        jobs[0].record = {"step": 8}
        assert display.seconds_left() == 20 / 2  # two steps a second each; the longer of the two runs has 20 left
    lines = ["one  step 8/20  loss 3.000  val 2.500", "relu  step 8/20  val 2.250"]
    assert capsys.readouterr().out.splitlines() == lines


def test_on_a_terminal_a_study_has_a_bar_for_all_steps_and_one_for_each_run(jobs, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with StudyDisplay("study", jobs) as display:
        assert display.bar
        assert [task.completed for task in display.bar.tasks] == [0, 5, 0]
        jobs[0].record = {"step": 8, "val/loss": 2.25}
        display.follow(jobs[0], [jobs[0].record | {"time": 1.0}])
        jobs[1].status = "failed"
        display.follow(jobs[1], [])
        bars = [(task.description, task.completed, task.total) for task in display.bar.tasks]
    assert bars == [("study", 23, 35), ("relu", 8, 20), ("gelu (failed)", 0, 20)]
    shown = capsys.readouterr().out
    assert "val 2.250" in shown
    assert "gelu failed; the others go on" in shown
