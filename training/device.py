"""Where a run runs: device, threads, precision, and the record of it."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError, unknown

M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_MAX = 1, -1, -4  # of <malloc.h>


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` takes cuda, else mps, else cpu.

    Raises:
        UserError: this machine has no such device.
    """
    if name not in ("auto", "cuda", "mps", "cpu"):
        raise UserError(unknown("device", name, ["auto", "cuda", "mps", "cpu"]))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(n for n, available in there.items() if available)
    if not there[name]:
        raise UserError(f"device {name!r}: not on this machine, which has {', '.join(n for n in there if there[n])}.")
    return torch.device(name)


@cache
def bf16_is_fast(kind: str) -> bool:
    """Whether the hardware of that kind (cuda, cpu, mps) is one that multiplies matrices in bf16, and faster so.

    Seen on AMD's processors with AVX512-BF16. Intel's need AMX, which a virtual machine may hide: without it, bf16 is
    slower there than fp32. (docs/performance.md)
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    cpu = torch.cpu.get_capabilities()
    intel = "Intel" in str(cpu.get("cpu_name"))
    return bool(cpu.get("amx_bf16" if intel else "avx512_bf16", False))


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32; `auto` takes bf16 where it is known to be the faster one."""
    if name != "auto":
        return name
    return "bf16" if bf16_is_fast(device.type) else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of forward passes: bf16 where matrices multiply, weights and sums in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def check_compiler() -> None:
    """Raise `UserError` where `torch.compile` would find no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"train.compile = true needs a C++ compiler, and there is no {compiler} (CXX names another).")


def moved(batch: Tensor, device: torch.device) -> Tensor:
    """Return a batch on a device; a copy to a GPU goes on while this process does."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def widest(device: torch.device) -> torch.dtype:
    """Return the type of the most digits that a device has: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for the rest of its life; glibc only, else nothing happens.

    Without it every large tensor of a step is a mapping of its own, whose pages the kernel clears anew: up to a fifth
    of a bf16 step (benchmarks/steps.py --no-keep-memory). Small blocks that are freed join their neighbours at once,
    instead of all of them within some later call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MXFAST, 0)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Return the most memory this process has held, bytes: on the GPU if it trains there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int:
    """Return the memory that is free, bytes: on the GPU, else in the machine, or all of it where that is not told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def environment(
    device: torch.device, precision: str, ranks: int = 1, compiled: bool = False, stacked: bool = False
) -> dict[str, Any]:
    """Return what must be equal for results to be equal bit for bit, and what a reader wants to know."""
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
    """The commit of this code, with a + if files differ from it; empty outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
