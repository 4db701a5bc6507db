"""metrics.jsonl, which is the record, and wandb, which mirrors it and never ends a run."""

import json
import sys

import pytest
import torch
from helpers import records, set_wandb_home, tiny_config, train_and_stop, wandb_entries, write_corpus

from training import checkpoint
from training.loop import train
from training.metrics import Metrics, strict_json
from training.sample import load_model
from training.wandb_mirror import WandbMirror

pytestmark = pytest.mark.usefixtures("no_sample")
OFTEN = {
    "tokens": 8 * 64,
    "log_every": 1,
    "lr": 1.5,
    "warmup": 1.0,
    "eval_every": 1,
    "checkpoint_every": 1,
    "keep": 9,
    "probes": 0,
}


def history(folder):
    """Return what the offline wandb files of a run hold, in order, and the records among that."""
    entries = [entry for run in sorted((folder / "wandb").glob("offline-run-*")) for entry in wandb_entries(run)]
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    return entries, [{k: v for k, v in item.items() if not k.startswith(("_", "samples"))} for item in items]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """The folder of a run whose loss rises and falls, its summary, its wandb entries and the records among them."""
    folder = tmp_path_factory.mktemp("mirrored")
    with pytest.MonkeyPatch.context() as patch:
        set_wandb_home(patch, folder / "home")
        patch.setenv("ACTGPT_CACHE", str(folder / "cache"))
        patch.setattr("training.run.sample_of", lambda *_: "text")
        corpus = write_corpus(folder / "corpus.txt")
        summary = train(tiny_config(corpus, train=OFTEN, wandb={"artifact": "best"}), folder / "run")
        return folder / "run", summary, *history(folder / "run")


def test_the_offline_wandb_file_holds_the_records_of_metrics_jsonl(mirrored):
    folder, _, entries, mirrored_records = mirrored
    ours = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(ours) == 9
    assert mirrored_records == ours
    metrics = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert any(metric.get("step_metric") == "tokens" for metric in metrics)
    config = next(entry["run"]["config"]["update"] for entry in entries if entry["type"] == "run")
    assert config["model"]["activation"] == "gelu"


def test_wandb_shows_the_lowest_and_the_last_validation_loss_and_the_sample(mirrored):
    folder, ours, entries, mirrored_records = mirrored
    losses = [record["val/loss"] for record in mirrored_records if "val/loss" in record]
    summary = {}
    for entry in entries:
        summary |= entry.get("summary", {}).get("update", {})
    assert min(losses) < losses[-1] == ours["val/loss"]
    assert summary["val/loss"] == {"min": min(losses), "last": losses[-1]}
    assert summary["test/loss"] == ours["test/loss"]
    (run,) = (folder / "wandb").glob("offline-run-*")
    table = json.loads((run / "files" / summary["samples.path"]).read_text())
    assert (table["columns"], table["data"]) == (["prompt", "text"], [["", "text"]])


def test_the_best_checkpoints_go_to_wandb_if_asked_for(mirrored):
    _, _, entries, mirrored_records = mirrored
    best, falling = float("inf"), []
    for loss in [record["val/loss"] for record in mirrored_records][1:]:
        if loss < best:
            best = loss
            falling.append(loss)
    models = [e["artifact"] for e in entries if e["type"] == "artifact" and e["artifact"]["type"] == "model"]
    assert 1 <= len(falling) < len(mirrored_records) - 1
    assert [json.loads(model["metadata"])["val/loss"] for model in models] == falling
    assert all("best" in model["aliases"] for model in models)
    assert {file["path"] for file in models[0]["manifest"]["contents"]} == {*checkpoint.FILES, "manifest.json"}


def test_a_resumed_run_goes_on_in_wandb_under_its_id_along_its_tokens(tiny, tmp_path, wandb_home, stop_at, capsys):
    config = tiny(train={"log_every": 1, "probes": 0})
    train_and_stop(config, tmp_path / "run", stop_at, 4)
    train(config, tmp_path / "run")
    assert "wandb sync" in capsys.readouterr().out
    entries, mirrored_records = history(tmp_path / "run")
    assert len({entry["run"]["run_id"] for entry in entries if entry["type"] == "run"}) == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2
    tokens = [record["tokens"] for record in mirrored_records]
    assert tokens == [step * config.tokens_per_step for step in range(config.steps + 1)]


@pytest.mark.parametrize(("before", "better"), [(None, [4.0, 3.5]), (3.75, [3.5]), (3.0, [])])
def test_a_resumed_run_knows_its_best_checkpoint(tiny, tmp_path, before, better):
    mirror = WandbMirror.of_run(tiny(wandb={"artifact": "best"}), tmp_path, None, before, print)
    assert [loss for loss in (float("nan"), 4.0, 4.0, 3.5) if mirror.is_lowest(loss)] == better
    assert not WandbMirror.of_run(tiny(), tmp_path, None, before, print).is_lowest(0.0)


@pytest.mark.parametrize(
    ("mode", "fails", "why"),
    [
        ("offline", False, "WANDB_MODE=offline"),
        ("dryrun", False, "WANDB_MODE=dryrun"),
        ("", False, "you are not logged in"),
        ("", True, "wandb could not be reached"),
    ],
)
def test_an_offline_run_says_why_and_how_to_upload_it(tiny, tmp_path, wandb_home, monkeypatch, mode, fails, why):
    import wandb

    def fail(**_):
        raise ConnectionError("no network")

    said = []
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(WandbMirror, "unreachable", False)
    if fails:
        monkeypatch.setattr(wandb, "login", fail)
    mirror = WandbMirror.of_run(tiny(), tmp_path / "run", None, None, said.append)
    mirror.close(failed=False)
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert said[-1] == f"wandb: kept offline, since {why}; to upload it later: wandb sync {kept}"
    assert len(said) == 1 + fails


@pytest.mark.parametrize("mode", ["foo", "auto"])
def test_a_mode_that_wandb_lacks_turns_it_off_with_the_modes_that_it_has(tiny, tmp_path, monkeypatch, capsys, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert train(tiny(), tmp_path / "run")["status"] == "finished"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line.lower()]
    assert line == (
        f"warning: WANDB_MODE={mode}: wandb has no such mode, so it is off. Use online, offline, shared, disabled."
    )
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize(("device", "watched"), [("cpu", False), ("cuda", True)])
def test_wandb_watches_the_machine_where_there_is_a_gpu(tiny, tmp_path, wandb_home, monkeypatch, device, watched):
    monkeypatch.setenv("WANDB_MODE", "offline")
    mirror = WandbMirror.of_run(tiny(), tmp_path / "run", None, None, print, device)
    assert mirror.run.settings.x_disable_stats is not watched
    mirror.close(failed=False)


@pytest.mark.parametrize(
    ("place", "tuned"), [("study/tune/relu", True), ("study/relu", False), ("tune/relu", False), ("tune", False)]
)
def test_a_tuning_run_has_a_job_type_and_a_tag_of_its_own(tiny, tmp_path, wandb_home, monkeypatch, place, tuned):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").touch()
    config = tiny()
    WandbMirror.of_run(config, tmp_path / place, None, None, print).close(failed=False)
    about = next(entry["run"] for entry in history(tmp_path / place)[0] if entry["type"] == "run")
    tags = ["gelu", config.data.corpus[:64]]
    assert (about["job_type"], about["tags"]) == (("tune", [*tags, "tune"]) if tuned else ("train", tags))


def test_wandb_mode_disabled_leaves_no_trace(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "wandb").exists()


class Broken:
    """A wandb run whose background process died."""

    calls = 0

    def __getattr__(self, _name):
        def fail(*_, **__):
            Broken.calls += 1
            raise ConnectionError("the service is gone")

        return fail


@pytest.mark.parametrize("step", [0, 9])
def test_a_wandb_that_fails_never_ends_a_run(tiny, tmp_path, monkeypatch, capsys, step):
    log = WandbMirror.log

    def fail(self, record):
        if record["step"] == step:
            self.run = Broken()
        log(self, record)

    train(tiny(train={"log_every": 1}), tmp_path / "without")
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(WandbMirror, "log", fail)
    assert train(tiny(train={"log_every": 1}), tmp_path / "run")["status"] == "finished"
    assert capsys.readouterr().out.count("warning: wandb is off for this run (ConnectionError") == 1
    assert Broken.calls == 1  # it is not tried again
    assert records(tmp_path / "run") == records(tmp_path / "without")


def test_a_missing_wandb_does_not_end_a_run(tiny, tmp_path, monkeypatch, wandb_home, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tiny(), tmp_path / "run")
    assert "wandb is off for this run" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(("given", "taken"), [("exp.1", True), ("../up", False)])
def test_a_run_whose_id_is_given_can_be_read_again(tiny, tmp_path, monkeypatch, wandb_home, capsys, given, taken):
    monkeypatch.setenv("WANDB_RUN_ID", given)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tiny(train={"tokens": 64, "probes": 0}), tmp_path / "run")
    state = load_model(tmp_path / "run", torch.device("cpu"))[2]
    assert (state["wandb_id"] == given) == taken
    assert ("cannot be part of a path" in capsys.readouterr().out) != taken


def test_resuming_cuts_the_file_back_and_numbers_that_json_lacks_become_null(tiny, tmp_path):
    path = tmp_path / "metrics.jsonl"
    mirror = WandbMirror(tiny().wandb, tmp_path, None, print)
    metrics = Metrics(path, b"", mirror)
    metrics.log({"step": 1})
    before = metrics.content()
    metrics.log({"step": 2})
    Metrics(path, before, mirror).log({"step": 2, "train/loss": float("inf")})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "train/loss": null}\n'


def test_numbers_that_json_lacks_become_null_at_every_depth():
    deep = {"a": [1.5, float("nan"), {"b": (float("inf"), 2)}], "c": "NaN", "d": -float("inf"), "e": True}
    assert strict_json(deep) == {"a": [1.5, None, {"b": [None, 2]}], "c": "NaN", "d": None, "e": True}
