"""Where a run trains: device, threads, precision, memory, and the record of it."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError

# FLOP/s of a GPU's matrix products in bf16, by a part of its name, from NVIDIA's data sheets. Figures that are given
# there "with sparsity" are halved. The first part that a name has counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_MAX = 1, -1, -4  # of <malloc.h>


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` takes cuda, else mps, else cpu.

    Raises:
        UserError: this machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        name = available[0]
    if name not in available:
        raise UserError(f"device {name!r}: this machine does not have it. It has: {', '.join(available)}.")
    return torch.device(name)


@cache
def bf16_is_fast(kind: str) -> bool:
    """Whether this machine's device of that kind (cuda, cpu, mps) multiplies matrices faster in bf16 than in fp32.

    AMD's processors with AVX512-BF16 do. Intel's do with AMX, which a virtual machine may hide; without AMX, bf16 is
    slower there than fp32 (docs/log.md).
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    cpu = torch.cpu.get_capabilities()
    intel = "Intel" in str(cpu.get("cpu_name"))
    return bool(cpu.get("amx_bf16" if intel else "avx512_bf16", False))


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16, fp16 or fp32; `auto` takes bf16 where it is known to be faster, else fp16 on a GPU."""
    if name != "auto":
        return name
    if bf16_is_fast(device.type):
        return "bf16"
    # GPUs before Ampere, such as the T4 of free notebooks, multiply fast in fp16 alone.
    return "fp16" if device.type == "cuda" else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of forward passes: matrix products in bf16 or fp16, weights and sums in fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return what scales the loss up in fp16, where small gradients would be 0. It does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def check_compiler() -> None:
    """Raise `UserError` where `torch.compile` would find no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"train.compile = true needs a C++ compiler, and there is no {compiler} (CXX names another).")


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Return a batch on a device. A copy to a GPU does not block this process."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def widest_float(device: torch.device) -> torch.dtype:
    """Return the most precise floating-point type of a device: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Let this process keep the memory that it frees, until it ends. Without glibc nothing happens.

    Otherwise every large tensor of a step gets new pages from the kernel, which clears them first: plain torch then has
    0.86 to 0.95 of its speed (benchmarks/steps.py --no-keep-memory).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        # No mappings, which free() would give back at once, and one heap that never shrinks.
        mallopt(M_MXFAST, 0)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process, bytes: on the GPU if it trains there, else resident.

    0 where the system does not say, as Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count the parent's memory at the start of this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int:
    """Return the memory of the GPU, else of the machine, bytes; a huge number where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return _pages("SC_PHYS_PAGES")


def free_memory(device: torch.device) -> int:
    """Return the free memory, bytes: of the GPU, else of the machine; all of it where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _pages("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")


def _pages(*names: str) -> int:
    """Return the bytes of the first of these counts of pages that the system has; without one, `sys.maxsize`."""
    for name in names:
        if name in getattr(os, "sysconf_names", ()):
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def peak_flops(device_name: str) -> float | None:
    """Return the most FLOP/s of a GPU in bf16; None where they are not known, as for a part of a GPU (MIG)."""
    for part, peak in PEAK_FLOPS.items():
        # As a word of its own, since a GB200 is faster than a B200.
        if re.search(rf"\b{part}\b", device_name) and "MIG" not in device_name:
            return peak
    return None


def speed_figures(tokens_per_s: float, flops_per_token: int, environment: dict[str, Any]) -> dict[str, float]:
    """Return the speed of training and, on GPUs whose peak is known, `perf/mfu`: the share of their peak that it uses.

    MFU is the model FLOPs utilisation of PaLM (Chowdhery et al., 2022, appendix B).
    """
    figures = {"perf/tokens_per_s": tokens_per_s}
    peak = peak_flops(environment["device_name"]) if environment["device"] == "cuda" else None
    if peak:
        figures["perf/mfu"] = flops_per_token * tokens_per_s / (peak * environment["ranks"])
    return figures


def environment(
    device: torch.device, precision: str, ranks: int = 1, compiled: bool = False, stacked: bool = False
) -> dict[str, Any]:
    """Return what has to be equal for results to be equal bit for bit, and what a reader wants to know."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "compiled": compiled,
        "stacked": stacked,
        "precision": precision,
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of this code, with a + if files differ from it; empty outside a git checkout."""
    # --exclude=* leaves out tags, which git would print in the place of the commit.
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
