"""One run in several processes (DDP), which torchrun starts: what they do otherwise than a process by itself.

All processes take the same steps, each on its rows of the same batches. The first one alone holds the folder and
writes. A reader of the loop can take every method of `Process` for what it does where `size` is 1.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from errors import Interrupted, UserError
from training.config import RunConfig
from training.device import pick_device

ENDED = "run/ended"  # a key in the store: which process ended the run, and its exit code

# How long the processes wait for each other. The first may be saving; one that died is for torchrun to notice.
PATIENCE = timedelta(hours=1)


def world_size() -> int:
    """Return how many processes torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


class Process:
    """One of the processes of a run, each with all weights. Without torchrun it is the only one, and waits for none."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None):
        self.rank, self.size, self.store = rank, size, store
        self.calls = 0  # of `first`, which all processes make in the same order

    @property
    def main(self) -> bool:
        """Whether this process writes and shows."""
        return self.rank == 0

    def first(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns in the first process, as JSON (a path becomes text); the others wait for it."""
        if self.size == 1:
            return call()
        self.calls += 1
        key = f"run/first {self.calls}"
        if self.main:
            value = call()
            self.store.set(key, json.dumps(value, default=str))
            return value
        # A blocking wait would not notice a process that has ended.
        while not self.store.check([key]):
            if self.store.check([ENDED]):
                raise SystemExit(1)
            time.sleep(0.05)
        return json.loads(self.store.get(key))

    def any_signal(self, signum: int) -> int:
        """Return the signal that any of the processes has received, or 0, so that all stop at one step."""
        if self.size == 1:
            return signum
        highest = torch.tensor(signum)  # on the CPU, so that no GPU has to be waited for
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module that trains the model. DDP averages gradients in its backward pass."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def rows(self, x: Tensor) -> Tensor:
        """Return this process's rows of a micro-batch."""
        return x.chunk(self.size)[self.rank]

    def without_exchange(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which backward passes do not exchange gradients."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def by_row(self, function: Callable[[Tensor, Tensor], Tensor], x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return function(x_BT, y_BT), one number for each row, B; each process computes a part of them."""
        if self.size == 1:
            return function(x_BT, y_BT)
        # Every process takes equally many rows, as all_gather wants it. Where rows are few, some are computed twice.
        each = -(-len(x_BT) // self.size)
        own_B = (torch.arange(each, device=x_BT.device) + self.rank * each) % len(x_BT)
        values_B = function(x_BT[own_B], y_BT[own_B])
        parts = [torch.empty_like(values_B) for _ in range(self.size)]
        dist.all_gather(parts, values_B)
        return torch.cat(parts)[: len(x_BT)]


ONE_PROCESS = Process()


@contextmanager
def join_processes(config: RunConfig) -> Iterator[Process]:
    """Meet the other processes of a run, if torchrun started any, and end together with them.

    The process that ends first says why. The others then end quietly with its exit code.

    Raises:
        UserError: the config does not go with these processes.
    """
    if world_size() == 1:
        yield ONE_PROCESS
        return
    backend = _backend(config)
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps the store when it starts processes again, and with it the addresses of those that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    # The first process alone prints and mirrors.
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.environ["WANDB_MODE"] = "disabled"
    process = Process(rank, size, store)
    try:
        check_batch(config, size)
        yield process
        process.any_signal(0)  # wait: the first process may still be writing
    except BaseException as error:
        if isinstance(error, (Interrupted, FloatingPointError)):  # raised in all processes, at one step
            process.any_signal(0)
        ended = f"{rank} {_exit_code(error)}"
        # The process that writes here first decides the exit code of all.
        with suppress(RuntimeError):  # the store may have died with its host
            ended = store.compare_set(ENDED, "", ended).decode()
        first, code = map(int, ended.split())
        if first != rank:
            raise SystemExit(code) from None
        raise
    dist.destroy_process_group()


def _backend(config: RunConfig) -> str:
    device = pick_device(config.train.device)
    if device.type == "mps":
        raise UserError("torchrun with train.device = 'mps': its processes cannot exchange data. Allowed: cuda, cpu.")
    if device.type == "cpu":
        return "gloo"
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"torchrun started more processes than this host has GPUs: use --nproc-per-node {gpus}.")
    torch.cuda.set_device(local)
    # Gradients travel between GPUs, signals between CPUs.
    return "cpu:gloo,cuda:nccl"


def check_batch(config: RunConfig, size: int) -> None:
    """Raise `UserError` if the batches of a run do not split into equal parts for that many processes."""
    c = config.train
    if c.batch_size % (c.accumulate * size):
        raise UserError(
            f"train.batch_size = {c.batch_size} with train.accumulate = {c.accumulate} does not split into equal parts "
            f"for {size} processes. Make it a multiple of {c.accumulate * size}."
        )


def _exit_code(error: BaseException) -> int:
    match error:
        case UserError():
            return 2
        case Interrupted():
            return error.code
        case SystemExit():
            return int(error.code or 0)
    return 1
