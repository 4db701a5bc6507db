"""The zig-zag of the weights: how directly training moves, from one update to the next and in all."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from model.gpt import FFN, GPT, Block
from training.device import widest_float

SHARE = 4  # one weight in four is followed: the first rows of each matrix


def ffns(model: GPT) -> dict[str, FFN]:
    """Return the FFNs, keyed as in `blocks.3`."""
    return {f"blocks.{layer}": cast(Block, block).ffn for layer, block in enumerate(model.blocks)}


def ffn_matrices(model: GPT) -> dict[str, Tensor]:
    """Return the matrices of the FFNs, keyed as in `blocks.3/up`."""
    matrices = {}
    for where, ffn in ffns(model).items():
        matrices[f"{where}/up"] = ffn.up.weight
        if ffn.gate is not None:
            matrices[f"{where}/gate"] = ffn.gate.weight
        matrices[f"{where}/down"] = ffn.down.weight
    return matrices


def followed_weights(matrices: Iterable[Tensor]) -> Tensor:
    """Return the weights that are followed, MS; dimensions before those of a matrix, as of several models, are kept."""
    followed = []
    for w in matrices:
        size = w.shape[-2:].numel() // SHARE
        followed.append(w.detach().flatten(-2)[..., :size])
    return torch.stack(followed, -2)


class WeightPath:
    """The path of each FFN matrix from its initial weights; `model` must hold them when this is made.

    M matrices, S followed weights of each. `tensors` is what a checkpoint keeps.
    """

    def __init__(self, model: GPT):
        self.matrices = ffn_matrices(model)
        self.start_MS = self.last_MS = followed_weights(self.matrices.values())
        zeros_M = self.start_MS.new_zeros(len(self.matrices))
        self.tensors = {"update_MS": torch.zeros_like(self.start_MS)}
        self.tensors |= {name: zeros_M.clone() for name in ("norm_M", "cosine_M", "count_M")}
        self.tensors["length_M"] = zeros_M.to(widest_float(zeros_M.device))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint whose weights the model holds by now."""
        self.tensors = {name: tensors[name].to(own) for name, own in self.tensors.items()}
        # `start_MS` stays: it was taken from the initial weights when this was made.
        self.last_MS = followed_weights(self.matrices.values())

    def update(self) -> None:
        """Follow the model by one training step."""
        now_MS = followed_weights(self.matrices.values())
        self.tensors, self.last_MS = _followed(self.tensors, self.last_MS, now_MS), now_MS

    def figures(self) -> dict[str, float]:
        """Return for each matrix the path's efficiency ‖θ_T − θ_0‖/Σ‖Δθ_t‖ and the cosine of successive updates.

        The efficiency is that of the run so far, the cosine a mean since the last call.
        """
        efficiency_M = (self.last_MS - self.start_MS).norm(dim=1) / self.tensors["length_M"]
        cosine_M = self.tensors["cosine_M"] / self.tensors["count_M"]
        self.tensors |= {name: torch.zeros_like(cosine_M) for name in ("cosine_M", "count_M")}
        figures = {}
        for name, efficiency, mean in zip(self.matrices, efficiency_M.tolist(), cosine_M.tolist(), strict=True):
            figures |= {f"path/{name}_efficiency": efficiency, f"path/{name}_cosine": mean}
        return figures


def update_together(paths: Sequence[WeightPath], now_RMS: Tensor) -> None:
    """Follow R models by one training step each; `now_RMS` is the sample of their weights."""
    before = {name: torch.stack([path.tensors[name] for path in paths]) for name in paths[0].tensors}
    after = _followed(before, torch.stack([path.last_MS for path in paths]), now_RMS)
    for r, path in enumerate(paths):
        path.tensors, path.last_MS = {name: tensor[r] for name, tensor in after.items()}, now_RMS[r]


def _followed(before: dict[str, Tensor], last_MS: Tensor, now_MS: Tensor) -> dict[str, Tensor]:
    update_MS = now_MS - last_MS
    norm_M = torch.linalg.vecdot(update_MS, update_MS).sqrt()
    cosine_M = torch.linalg.vecdot(update_MS, before["update_MS"]) / (norm_M * before["norm_M"])
    return {
        "update_MS": update_MS,
        "norm_M": norm_M,
        "length_M": before["length_M"] + norm_M,
        "cosine_M": before["cosine_M"] + cosine_M.nan_to_num(),  # the first update follows none
        "count_M": before["count_M"] + cosine_M.isfinite(),
    }
