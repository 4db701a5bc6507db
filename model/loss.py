"""The training loss without the logits of a whole batch: rows at a time, with their gradients taken on the way.

What is kept for the backward pass are the gradients by the rows and by the weights, not the scores: at a vocabulary of
50,257 these would be most of a step's memory (as Liger Kernel, Hsu et al., 2024, does for softmax; here for any head).
A compiled step holds those of a micro-batch, as one graph.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.heads import Softmax, cross_entropy
from model.layers import linear, transformed

SCORES = 1 << 22  # computed at a time, rows x vocabulary: 16 MiB in fp32, which stays near a processor
GPU_SCORES = 1 << 27  # 512 MiB in fp32: few, large products
LEAST_ROWS = 512  # fewer would add to the gradient by the weights too often
ALIGNED = 64  # a GPU's fast products want a vocabulary that is a multiple
NONE = -1e30  # a score without probability, and finite, since whoever looks for what is not would find it


def _rows(weight_VD: Tensor) -> int:
    return max((GPU_SCORES if weight_VD.is_cuda else SCORES) // len(weight_VD), LEAST_ROWS)


def padded(weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return W with rows of 0 up to a multiple of `ALIGNED`, and a bias that makes `NONE` of their scores.

    No head gives probability, loss or gradient to such a score.
    """
    rows = -len(weight_VD) % ALIGNED
    return F.pad(weight_VD, (0, 0, 0, rows)), F.pad(weight_VD.new_zeros(len(weight_VD)), (0, rows), value=NONE)


def _scores(x_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Return x Wᵀ, NV; on a GPU with further columns of `NONE` up to a multiple."""
    if x_ND.is_cuda and len(weight_VD) % ALIGNED:
        return F.linear(x_ND, *padded(weight_VD))
    return linear(x_ND, weight_VD)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Softmax, rows: int, x_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, *of_head: Tensor
    ) -> Tensor:
        losses, inputs = [], (weight_VD, *of_head)
        grad_ND, grads = torch.empty_like(x_ND), [torch.zeros_like(p) for p in inputs]
        parts = zip(x_ND.split(rows), targets_N.split(rows), grad_ND.split(rows), strict=True)
        for part_ND, part_N, part_grad_ND in parts:
            share = len(part_N) / len(targets_N)
            with torch.enable_grad():
                part_ND = part_ND.detach().requires_grad_()
                loss = head.loss(_scores(part_ND, weight_VD), part_N) * share
                found = torch.autograd.grad(loss, (part_ND, *inputs))
            losses.append(loss.detach())
            part_grad_ND.copy_(found[0])
            for i, total in enumerate(grads, 1):
                total += found[i]
            del found  # else they stay until the next rows have theirs
        ctx.save_for_backward(grad_ND, *grads)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_ND, *grads = (saved * grad for saved in ctx.saved_tensors)
        return None, None, grad_ND, None, *grads


def token_losses(head: Softmax, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the cross-entropy of each target under the head's distribution, nats, N."""
    rows = _rows(weight_VD) if not torch.is_grad_enabled() else len(x_ND)
    parts = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([cross_entropy(head(_scores(part_ND, weight_VD)), part_N, "none") for part_ND, part_N in parts])


def head_loss(head: Softmax, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return `head.loss` of the scores x Wᵀ: the head's training objective, nats, the mean over N tokens."""
    rows = _rows(weight_VD)
    if len(x_ND) <= rows or transformed():
        return head.loss(_scores(x_ND, weight_VD), targets_N)
    return _Chunked.apply(head, rows, x_ND, targets_N, weight_VD, *head.parameters())  # pyright: ignore[reportReturnType]
