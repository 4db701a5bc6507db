"""What the tests of faults share: disks that fill up."""

import os
import subprocess

import pytest


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
