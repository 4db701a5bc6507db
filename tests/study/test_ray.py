"""A study on a Ray cluster of two machines, both of them this one. Skipped where ray is not installed."""

import importlib
import os
import signal
import threading
import time

import pytest
from helpers import records

from errors import Interrupted, UserError
from study.plan.plan import make_plan
from study.run.protocol import run_study
from training.config import tree as plain
from training.loop import train

# Each run waits in two of its steps, until the file go-<step> is there or it is asked to stop.
HOLD = """
import pathlib, signal, time
from training import step
ACTIVATIONS, whole, folder = {}, step.train_batch, pathlib.Path("FOLDER")
def train_batch(tokens_N, seed, at, *shape):
    if at in (9, 14):
        (folder / f"held-{at}-{time.time_ns()}").touch()
        while not (folder / f"go-{at}").exists() and not signal.getsignal(signal.SIGINT).__self__.signum:
            time.sleep(0.02)
    return whole(tokens_N, seed, at, *shape)
step.train_batch = train_batch
"""


@pytest.fixture
def study(tiny):
    """A study of four runs."""
    tree = plain(tiny(train={"probes": 0}))
    tree["model"]["activation"], tree["train"]["seed"] = ["relu", "gelu"], [1, 2]
    return tree | {"study": {"engine": "ray"}}


@pytest.fixture
def cluster(monkeypatch, cache):
    """Two machines of one core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    module = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = module.Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.second = cluster.add_node(**node)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def once(folder, pattern, count, act):
    """Act in a thread once so many files are there."""

    def wait():
        deadline = time.monotonic() + 120
        while len([*folder.glob(pattern)]) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.filterwarnings("ignore")  # ray's own
def test_a_study_that_is_stopped_and_loses_a_machine_ends_in_the_results_of_one_process(study, cluster, tmp_path):
    folder, plugin = tmp_path / "study", tmp_path / "hold.py"
    plugin.write_text(HOLD.replace("FOLDER", str(tmp_path)))
    study["model"] |= {"plugin": str(plugin), "plugin_sha256": "of a test"}
    once(tmp_path, "held-9-*", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="the same command resumes it") as stopped:
        run_study(study, folder)
    assert stopped.value.code == 143
    assert len([*folder.glob("*/checkpoints/step-00000010")]) == 2
    (tmp_path / "go-9").touch()

    def lose():
        cluster.remove_node(cluster.second, allow_graceful=False)
        (tmp_path / "go-14").touch()

    once(tmp_path, "held-14-*", 2, lose)
    assert run_study(study, folder) == []
    assert len([*tmp_path.glob("held-14-*")]) > 4  # one run came there twice
    for name, config in make_plan(study).runs.items():
        train(config, tmp_path / "alone" / name)
        assert records(folder / name) == records(tmp_path / "alone" / name)
        assert "step 20/20" in (folder / name / "log.txt").read_text()


@pytest.mark.filterwarnings("ignore")
def test_without_a_cluster_the_message_names_the_way_to_one(study, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="ray start --head"):
        run_study(study, tmp_path / "study")


def test_without_the_package_its_extra_is_named_before_anything_is_done(study, tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install .* -e '\.\[ray\]'"):
        run_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()
