"""How a door ends: exit codes, messages, and which faults keep their traceback."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

import errors
from errors import Interrupted, UserError


def raising(fault):
    def main():
        raise fault

    return main


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**15),
        lambda: torch.empty(2**40, 2**40),
        lambda: np.empty(10**16),
        lambda: [0] * 10**17,
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    ],
    ids=["torch", "torch-overflow", "numpy", "python", "gpu"],
)
def test_memory_that_runs_out_is_one_line_and_code_2(allocate, capsys):
    assert errors.door(allocate) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory (")
    assert said.endswith("Use a smaller model, a smaller batch or fewer tokens.\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("the cache ran out of memory slots"),
        RuntimeError("while saving: [enforce fail at alloc_cpu.cpp:127]"),
        ValueError("array is too big"),
        KeyError("not enough memory"),
        NotImplementedError("[enforce fail at alloc_cpu.cpp:127] is another type"),
    ],
    ids=str,
)
def test_a_fault_of_ours_whose_text_speaks_of_memory_keeps_its_traceback(fault):
    with pytest.raises(type(fault)) as raised:
        errors.door(raising(fault))
    assert raised.value is fault


def test_a_door_that_has_not_loaded_torch_does_not_load_it_to_judge_a_fault():
    code = "import sys, errors\ndef main(): raise MemoryError\n"
    code += "assert errors.door(main) == 2 and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: not enough memory (MemoryError)")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (UserError("--train.lr=-1: must be above 0."), 2, "error: --train.lr=-1: must be above 0.\n"),
        (FloatingPointError("step 3: the loss is nan"), 1, "error: step 3: the loss is nan\n"),
        (Interrupted(15, "stopped at step 4"), 143, "stopped at step 4\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["mistake", "diverged", "signal", "ctrl-c"],
)
def test_every_way_to_end_has_its_code_and_its_message(fault, code, said, capsys):
    assert errors.door(raising(fault)) == code
    assert capsys.readouterr().err == said


def test_a_name_that_the_file_system_refuses_is_the_user_s_mistake(tmp_path, capsys):
    assert errors.door(lambda: os.mkdir(tmp_path / ("x" * 300))) == 2
    assert "longer than the file system allows. Choose a shorter one." in capsys.readouterr().err
