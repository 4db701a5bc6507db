"""A run whose weights, gradients and optimiser state are spread over its ranks (FSDP2; Zhao et al., 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from errors import UserError
from model.gpt import GPT
from training.config import RunConfig
from training.parallel import Ranks


class ShardedRanks(Ranks):
    """One of several processes, each with a part of every weight; a block's weights meet while it computes."""

    whole = False

    def check(self, config: RunConfig) -> None:
        """Refuse what needs whole matrices on one rank."""
        super().check(config)
        if config.train.optimizer == "muon":
            raise UserError(
                "optimizer 'muon' needs whole matrices, and parallel 'fsdp' cuts them. "
                "Allowed with fsdp: adamw, sgd; muon goes with --train.parallel=ddp."
            )
        if config.train.probes:
            raise UserError(
                f"train.probes = {config.train.probes}: probes read whole matrices, and parallel 'fsdp' cuts them. "
                "Give --train.probes=0, or --train.parallel=ddp."
            )

    def place(self, model: GPT, device: torch.device) -> None:
        """See `Alone`. A block comes to the device and is cut before the next one comes.

        Raises:
            UserError: a weight is a single number, which FSDP2 does not take.
        """
        if scalars := [name for name, p in model.named_parameters() if p.ndim == 0]:
            raise UserError(
                f"parallel 'fsdp' cannot cut weights that are single numbers: {', '.join(scalars)}. "
                "Give --train.parallel=ddp, or another activation or head."
            )
        mesh = init_device_mesh(device.type, (self.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # else its parameters are others after a score
        for method in ("train_loss", "token_losses"):  # which read the embedding outside of `forward`
            register_fsdp_forward_method(model, method)
        self.module = model

    @contextmanager
    def exchanging(self, now: bool) -> Iterator[None]:
        """See `Ranks`."""
        cast(FSDPModule, self.module).set_requires_gradient_sync(now)
        yield

    def train_loss(self, model: GPT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """See `Alone`."""
        return model.train_loss(x_BT, y_BT)

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """See `Alone`."""
        return _whole(super().norm(parameters))

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Alone`. Every rank gathers, one tensor after the other; the first alone keeps them, on the CPU."""
        kept = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor)
            if self.main:
                kept[name] = whole.cpu()
        return kept

    def part(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """See `Alone`. What is not of the parameter's shape, as a count of steps, is not cut."""
        if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
            return super().part(whole, parameter)
        whole = whole.to(parameter.device)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
