"""What a run picks for itself on the hardware it finds."""

import json

import pytest
import torch

from training.device import bf16_is_fast, peak_flops, pick_precision, speed_figures
from training.loop import train


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


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),  # a part of a GPU
        ("NVIDIA GB200", None),  # it has more than a B200
        ("NVIDIA A10G", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all(name, peak):
    assert peak_flops(name) == peak


def test_utilisation_is_flops_over_the_peak_of_all_gpus():
    gpus = {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB", "ranks": 2}
    figures = {"perf/tokens_per_s": 1e6}
    assert speed_figures(1e6, 312_000_000, gpus) == figures | {"perf/mfu": 0.5}  # 312e12 of twice 312e12
    assert speed_figures(1e6, 312_000_000, gpus | {"device_name": "NVIDIA T4"}) == figures
    assert speed_figures(1e6, 312_000_000, gpus | {"device": "cpu"}) == figures


def test_records_and_summary_have_the_utilisation_where_the_peak_is_known(tiny, tmp_path, monkeypatch, no_sample):
    known = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "ranks": 1}
    monkeypatch.setattr("training.run.environment", lambda *_: known)
    summary = train(tiny(), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [record for record in (*records, summary) if "perf/tokens_per_s" in record]
    assert len(measured) == 11
    for figures in measured:
        expected = summary["flops/token"] * figures["perf/tokens_per_s"] / 989e12
        assert figures["perf/mfu"] == pytest.approx(expected, rel=1e-12)
