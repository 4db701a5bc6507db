"""One run in one process or in several, its ranks: what a rank does otherwise than a process that is alone.

All ranks take the same steps, each on its rows of the same batches; the first alone holds the folder and writes.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from errors import UserError
from model.gpt import GPT
from training.config import RunConfig

ENDED = "run/ended"  # key in the store: who ended the run, and its exit code
Batch = tuple[Tensor, Tensor]  # x_BT, y_BT


def pick_parallel(config: RunConfig) -> str:
    """Return how a run is spread: "alone", "ddp" or "fsdp"; `auto` takes ddp where torchrun started several processes.

    Raises:
        UserError: it asks for processes that nobody started.
    """
    mode = config.train.parallel
    if mode == "auto":
        return "ddp" if world_size() > 1 else "alone"
    if "RANK" not in os.environ:
        raise UserError(
            f"train.parallel = {mode!r} is for processes that torchrun starts: torchrun --nproc-per-node 2 train.py …"
        )
    return mode


def world_size() -> int:
    """Return how many processes torchrun started; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


class Alone:
    """A run in one process: all rows of a batch and all weights are its own."""

    rank, size = 0, 1
    whole = True  # each rank holds all weights

    @property
    def main(self) -> bool:
        """Whether this process writes and shows."""
        return self.rank == 0

    def check(self, config: RunConfig) -> None:
        """Raise `UserError` for a config that does not go with these processes."""

    def first(self, call: Callable[[], Any]) -> Any:
        """Return what the first rank's call returns (JSON; a path becomes text); the others wait for it."""
        return call()

    def agree(self, signum: int) -> int:
        """Return the signal that any rank has received, or 0: all stop at one step."""
        return signum

    def place(self, model: GPT, device: torch.device) -> None:
        """Bring the model, built anew and equal on all ranks, to where it trains."""
        model.to(device)

    def rows(self, batches: list[Batch]) -> Iterable[Batch]:
        """Yield this rank's rows of each micro-batch of a step, to go through `train_loss` and backward."""
        return batches

    def train_loss(self, model: GPT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the mean training loss of these rows, nats."""
        return model.train_loss(x_BT, y_BT)

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the norm of the gradient of the whole batch."""
        return get_total_norm([p.grad for p in parameters if p.grad is not None])

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks."""
        return values

    def by_row(self, nats: Callable[[Tensor, Tensor], Tensor], x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return nats(x_BT, y_BT), one number for each row, B."""
        return nats(x_BT, y_BT)

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors whole, for the first rank to save."""
        return tensors

    def part(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """Return what a rank holds of a tensor that goes with a parameter, on its device."""
        return whole.to(parameter.device)


ALONE = Alone()


class Ranks(Alone):
    """One of several processes, each with all weights (DDP); gradients are averaged in the backward pass."""

    module: nn.Module

    def __init__(self, rank: int, size: int, store: Any):
        self.rank, self.size, self.store, self.said = rank, size, store, 0

    def check(self, config: RunConfig) -> None:
        """Every micro-batch has to split into equal parts."""
        c = config.train
        if c.batch_size % (c.accumulate * self.size):
            micro = f" in {c.accumulate} micro-batches" if c.accumulate > 1 else ""
            raise UserError(f"batch_size {c.batch_size}{micro} does not split into equal parts for {self.size} ranks.")

    def first(self, call: Callable[[], Any]) -> Any:
        """See `Alone`. All ranks come to ask for the same in the same order."""
        self.said += 1
        key = f"run/said {self.said}"
        if self.main:
            value = call()
            self.store.set(key, json.dumps(value, default=str))
            return value
        while not self.store.check([key]):
            if self.store.check([ENDED]):
                raise SystemExit(1)
            time.sleep(0.05)
        return json.loads(self.store.get(key))

    def agree(self, signum: int) -> int:
        """See `Alone`. On the CPU: it waits for no GPU."""
        most = torch.tensor(signum)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def place(self, model: GPT, device: torch.device) -> None:
        """See `Alone`."""
        model.to(device)
        self.module = DistributedDataParallel(_TrainLoss(model))

    def rows(self, batches: list[Batch]) -> Iterator[Batch]:
        """Yield as `Alone`; gradients are exchanged in the backward pass of the last micro-batch only."""
        for i, (x_BT, y_BT) in enumerate(batches, 1):
            with self.exchanging(i == len(batches)):
                yield x_BT.chunk(self.size)[self.rank], y_BT.chunk(self.size)[self.rank]

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        """Whether backward passes inside exchange gradients."""
        assert isinstance(self.module, DistributedDataParallel)
        return nullcontext() if now else self.module.no_sync()

    def train_loss(self, model: GPT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """See `Alone`."""
        return self.module(x_BT, y_BT)

    def mean(self, values: Tensor) -> Tensor:
        """See `Alone`."""
        dist.all_reduce(values)
        return values / self.size

    def by_row(self, nats: Callable[[Tensor, Tensor], Tensor], x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """See `Alone`. Each rank does as many rows, the last ones of few the first rows again."""
        each = -(-len(x_BT) // self.size)
        own_B = (torch.arange(each, device=x_BT.device) + self.rank * each) % len(x_BT)
        nats_B = nats(x_BT[own_B], y_BT[own_B])
        parts = [torch.empty_like(nats_B) for _ in range(self.size)]
        dist.all_gather(parts, nats_B)
        return torch.cat(parts)[: len(x_BT)]


class _TrainLoss(nn.Module):
    """The training loss as a forward pass, which is what DDP wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        return self.model.train_loss(x_BT, y_BT)
