"""Linear layers and RMSNorm: torch's own, formulated anew where eager torch is slow to train on a CPU.

Equal to torch's within rounding. They are torch's on other devices, under `torch.compile` and under `torch.func`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if ONEDNN else None
BF16 = bool(PACK and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # not before AVX-512
LEAST_ROWS = 16  # below it, a call of oneDNN costs more than it saves
# F.linear's fp32 products are MKL's, which leaves AVX-512 unused on processors not Intel's. (benchmarks/steps.py)
CPU = torch.cpu.get_capabilities()
MKL_IS_FAST = "Intel" in str(CPU.get("cpu_name")) or not CPU.get("avx512_f", False)


def transformed() -> bool:
    """Whether `torch.compile` or a transform of `torch.func`, such as vmap, is at work: they want torch's own."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def formulated(x: Tensor) -> bool:
    """Whether the formulations of this project apply: where gradients flow on a CPU, in code that runs as written."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not transformed()


def onednn(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x Wᵀ by oneDNN, with W also in a layout of its own."""
    assert ONEDNN is not None
    return ONEDNN(x_NI, weight_OI, None, "none", [], "")


class _Linear(torch.autograd.Function):
    """x Wᵀ in fp32 by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return onednn(x_NI, weight_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        grad_NI = onednn(grad_NO, weight_OI.mT) if of_x else None
        if not of_weight:
            return grad_NI, None
        wide = weight_OI.shape[0] > weight_OI.shape[1]  # oneDNN is faster with the longer side last
        grad_OI = onednn(x_NI.mT, grad_NO.mT).mT.contiguous() if wide else onednn(grad_NO.mT, x_NI.mT)
        return grad_NI, grad_OI


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x Wᵀ, as `F.linear` does: (..., I) -> (..., O)."""
    if transformed():
        return F.linear(x, weight_OI)
    single = x.dtype == weight_OI.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    few = x.shape[:-1].numel() < LEAST_ROWS
    if ONEDNN is None or MKL_IS_FAST or not single or few or x.device.type != "cpu":
        return F.linear(x, weight_OI)
    product = _Linear.apply if torch.is_grad_enabled() else onednn
    y_NO: Tensor = product(x.flatten(0, -2), weight_OI)  # pyright: ignore[reportAssignmentType]
    return y_NO.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """x Wᵀ + b; (..., I) -> (..., O)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Return the layer's output."""
        y = linear(input, self.weight)
        return y if self.bias is None else y + self.bias


class _RMSNorm(torch.autograd.Function):
    """Few passes over memory: the sums over rows and columns of the backward pass come from one product, as GEMVs."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        mean_square_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True).square_().div_(x_ND.shape[-1])
        scale_N1 = mean_square_N1.add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return (x_ND * scale_N1).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        product_ND = grad_ND * x_ND
        grad_D = (scale_N1.mT @ product_ND).squeeze(0)
        along_N1 = (product_ND @ weight_D[:, None]).mul_(scale_N1.pow(3)).div_(x_ND.shape[-1])
        torch.mul(grad_ND, weight_D, out=product_ND)
        return product_ND.mul_(scale_N1).addcmul_(x_ND, along_N1, value=-1), grad_D, None


class RMSNorm(nn.RMSNorm):
    """w · x / √(mean(x²) + ε) over the last dimension (Zhang & Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed input, in its own shape."""
        if formulated(x):
            y_ND: Tensor = _RMSNorm.apply(x.flatten(0, -2), self.weight, self.eps)  # pyright: ignore[reportAssignmentType]
            return y_ND.view_as(x)
        return super().forward(x)
