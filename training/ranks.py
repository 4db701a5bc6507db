"""How the ranks of a run meet, hear from each other and end together."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from errors import Interrupted, UserError
from training.config import RunConfig
from training.device import pick_device
from training.parallel import ALONE, ENDED, Alone, Ranks, pick_parallel

# Ranks wait for the first while it saves; one that died is torchrun's to notice, not theirs.
PATIENCE = timedelta(hours=1)


@contextmanager
def joined(config: RunConfig) -> Iterator[Alone]:
    """Meet the other ranks of the run, if torchrun started any, and leave together.

    The rank that ends first says why; the others then end quietly with its exit code.

    Raises:
        UserError: the config does not go with these processes.
    """
    mode = pick_parallel(config)
    if mode == "alone":
        yield ALONE
        return
    backend = _backend(config)
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps the store when it starts processes again, and with it the addresses of those that are gone
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    if rank:  # it is quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.environ["WANDB_MODE"] = "disabled"
    ranks = _kind(mode)(rank, size, store)
    try:
        ranks.check(config)
        yield ranks
        ranks.agree(0)  # the first may still be writing
    except BaseException as error:
        if isinstance(error, (Interrupted, FloatingPointError)):  # of all ranks, at one step
            ranks.agree(0)
        ended = f"{rank} {_code(error)}"
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
        raise UserError("device 'mps' has no way to talk to other processes. Allowed with torchrun: cuda, cpu.")
    if device.type == "cpu":
        return "gloo"
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise UserError(f"this host has {there} GPUs, but more processes: give torchrun --nproc-per-node {there}.")
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _kind(mode: str) -> type[Ranks]:
    if mode == "ddp":
        return Ranks
    from training.sharded import ShardedRanks  # it takes a second to import

    return ShardedRanks


def _code(error: BaseException) -> int:
    match error:
        case UserError():
            return 2
        case Interrupted():
            return error.code
        case SystemExit():
            return int(error.code or 0)
    return 1
