"""What a run picks for itself on the hardware it finds."""

import importlib.util
import sys

import pytest
import torch

from training import device
from training.device import bf16_is_fast, pick_precision


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        ({"cpu_name": "AMD EPYC-Genoa", "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "AMD EPYC-Milan", "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_precision_is_bf16_where_a_processor_multiplies_faster_in_it(monkeypatch, cpu, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    bf16_is_fast.cache_clear()
    assert pick_precision("auto", torch.device("cpu")) == precision
    bf16_is_fast.cache_clear()
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_system_without_the_module_resource_has_devices_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert device.__file__ is not None
    spec = importlib.util.spec_from_file_location("device_on_windows", device.__file__)
    assert spec is not None
    assert spec.loader is not None
    afresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(afresh)
    assert afresh.pick_device("cpu") == torch.device("cpu")
