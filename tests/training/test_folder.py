import os
from contextlib import contextmanager

import pytest

from study.run.protocol import run_study
from training.config import tree as plain
from training.folder import write_whole
from training.loop import train


@contextmanager
def dying_while_writing(name):
    """The process dies while it writes a file of this name, a part of its text on the disk."""
    replace = os.replace

    def die(partial, path):
        if path.name == name:
            partial.write_text(partial.read_text(encoding="utf-8")[:20], encoding="utf-8")
            raise KeyboardInterrupt
        replace(partial, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "study.toml"
    write_whole(path, "é" * 100)
    with dying_while_writing("study.toml"):
        write_whole(path, "another")
    assert path.read_text(encoding="utf-8") == "é" * 100


@pytest.mark.parametrize("name", ["config.toml", "summary.json"])
def test_a_run_that_died_while_it_wrote_a_file_goes_on(tiny, tmp_path, name):
    with dying_while_writing(name):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    train(tiny(), tmp_path / "run")
    assert (tmp_path / "run" / name).exists()


def test_a_study_that_died_while_it_wrote_its_config_goes_on(tiny, tmp_path):
    tree = plain(tiny())
    tree["model"]["activation"] = ["relu"]
    with dying_while_writing("study.toml"):
        run_study(tree, tmp_path / "study")
    assert not (tmp_path / "study" / "study.toml").exists()
    assert run_study(tree, tmp_path / "study") == []
