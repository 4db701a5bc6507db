"""What the faults share: doors called in this process, real ones in their own, and disks that fill up."""

import importlib
import os
import random
import subprocess
import sys

import pytest
from commands import ROOT

from errors import door


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that calls a door in this process and gives back its exit code and all that it said.

    A fault that would end the process with a traceback ends the test.
    """

    def run(name, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = door(importlib.import_module(name).main)
        except SystemExit as end:  # of tyro
            code = end.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a real, empty file system of so many bytes; needs root."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a file system")
        mounted.append(folder)
        return folder

    if os.geteuid():
        pytest.skip("only root may mount a file system")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def long_only(pytestconfig):
    """Skip a test that takes long, or that another does in short."""
    if not pytestconfig.getoption("--long"):
        pytest.skip("only with --long")


@pytest.fixture
def draw():
    """Random numbers of a fixed seed."""
    return random.Random(0)
