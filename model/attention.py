"""Causal self-attention with rotary positions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.config import ModelConfig
from model.layers import Linear, formulated, transformed

# In bf16 on a CPU, torch's fused kernel takes 3.8 times as long as the formula below at 64 positions, 2.5 times at 512
# and 2.0 times at 1024 (forward and backward, one core: benchmarks/attention.py), but keeps no scores, whose memory
# grows with the square of the positions.
PLAIN_UP_TO = 512
BLOCK = 128  # queries at a time: at 256 positions 0.9 of the time of all at once, at 512 three quarters


def rotary_table(context: int, d_head: int) -> Tensor:
    """Return cos and ∓sin of the rotary angles for both halves of a head, (2, T, K), in float32.

    RoFormer (Su et al., 2021), base 10,000: x turns to x·cos + (x with its halves exchanged)·(−sin, sin).
    """
    frequency_K = 10_000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle_TK = torch.outer(torch.arange(context, dtype=torch.float64), frequency_K)
    cos_TK, sin_TK = angle_TK.cos(), angle_TK.sin()
    return torch.stack((torch.cat((cos_TK, cos_TK), -1), torch.cat((-sin_TK, sin_TK), -1))).float()


def rotate(x: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) of a head by the angle of its position; (..., T, K) -> (..., T, K)."""
    return torch.addcmul(x * cos_TK, x.roll(x.shape[-1] // 2, -1), sin_TK)


class _Heads(torch.autograd.Function):
    """Split and rotate in one go, straight into the layout that the products need, and back in the same way."""

    @staticmethod
    def forward(ctx: Any, qkv_BT3HK: Tensor, rotary_2TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _, H, K = qkv_BT3HK.shape
        ctx.rotary_2TK = rotary_2TK = rotary_2TK.to(qkv_BT3HK.dtype)
        qkv_3BHTK = qkv_BT3HK.new_empty(3, B, H, T, K).copy_(qkv_BT3HK.permute(2, 0, 3, 1, 4))
        (cos_TK, sin_TK), qk_2BHTK = rotary_2TK, qkv_3BHTK[:2]
        halves_2BHTK = qk_2BHTK.roll(K // 2, -1)
        qk_2BHTK.mul_(cos_TK).addcmul_(halves_2BHTK, sin_TK)
        q_BHTK, k_BHTK, v_BHTK = qkv_3BHTK
        return q_BHTK, k_BHTK, v_BHTK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_BHTK: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        B, H, T, K = grads_BHTK[0].shape
        grad_BT3HK = grads_BHTK[0].new_empty(B, T, 3, H, K)
        q_BHTK, k_BHTK, v_BHTK = grad_BT3HK.permute(2, 0, 3, 1, 4)
        cos_TK, sin_TK = ctx.rotary_2TK
        back_TK = -sin_TK
        for of_BHTK, grad_BHTK in zip((q_BHTK, k_BHTK), grads_BHTK[:2], strict=True):
            of_BHTK.copy_((grad_BHTK * cos_TK).addcmul_(grad_BHTK.roll(K // 2, -1), back_TK))
        v_BHTK.copy_(grads_BHTK[2])
        return grad_BT3HK, None


def heads(qkv_BT3HK: Tensor, rotary_2TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys (both rotated) and values of every head, BHTK."""
    if qkv_BT3HK.device.type == "cpu" and not transformed():  # where no gradient flows too, as in a score
        return _Heads.apply(qkv_BT3HK, rotary_2TK)  # pyright: ignore[reportReturnType]
    q_BHTK, k_BHTK, v_BHTK = (z_BTHK.transpose(1, 2) for z_BTHK in qkv_BT3HK.unbind(2))
    cos_TK, sin_TK = rotary_2TK.to(qkv_BT3HK.dtype)
    return rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BHTK, cos_TK, sin_TK), v_BHTK


class _Causal(torch.autograd.Function):
    """A block of queries at a time against the keys up to its end: most of what the mask hides is never computed."""

    @staticmethod
    def forward(ctx: Any, q_NTK: Tensor, k_NTK: Tensor, v_NTK: Tensor) -> Tensor:
        T, ctx.scale = q_NTK.shape[1], q_NTK.shape[2] ** -0.5
        bias_TT = q_NTK.new_full((T, T), -math.inf).triu_(1)
        shares, y_NtK = [], []
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            bias_ts, q_NtK, k_NsK = bias_TT[start:end, :end], q_NTK[:, start:end], k_NTK[:, :end]
            shares.append(torch.baddbmm(bias_ts, q_NtK, k_NsK.mT, alpha=ctx.scale).softmax(-1))
            y_NtK.append(shares[-1] @ v_NTK[:, :end])
        ctx.save_for_backward(q_NTK, k_NTK, v_NTK, *shares)
        return torch.cat(y_NtK, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q_NTK, k_NTK, v_NTK, *shares = ctx.saved_tensors
        of_q_NTK, of_k_NTK, of_v_NTK = (torch.zeros_like(z) for z in (q_NTK, k_NTK, v_NTK))
        for share_Nts in shares:
            end = share_Nts.shape[2]
            start = end - share_Nts.shape[1]
            q_NtK, k_NsK, grad_NtK = q_NTK[:, start:end], k_NTK[:, :end], grad_NTK[:, start:end]
            of_share_Nts = grad_NtK @ v_NTK[:, :end].mT
            of_score_Nts = torch.ops.aten._softmax_backward_data(of_share_Nts, share_Nts, -1, share_Nts.dtype)
            of_q_NTK[:, start:end].baddbmm_(of_score_Nts, k_NsK, alpha=ctx.scale)
            of_k_NTK[:, :end].baddbmm_(of_score_Nts.mT, q_NtK, alpha=ctx.scale)
            of_v_NTK[:, :end].baddbmm_(share_Nts.mT, grad_NtK)
        return of_q_NTK, of_k_NTK, of_v_NTK


def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, causal: bool) -> Tensor:
    """Return softmax(q kᵀ/√K) v, BHTK; `causal` masks later positions (as many queries as keys)."""
    B, H, T, K = q_BHTK.shape
    if q_BHTK.device.type != "cpu" or q_BHTK.dtype != torch.bfloat16 or T > PLAIN_UP_TO:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=causal)
    if causal and formulated(q_BHTK):
        y_NTK: Tensor = _Causal.apply(*(z.flatten(0, 1) for z in (q_BHTK, k_BHTK, v_BHTK)))  # pyright: ignore[reportAssignmentType]
        return y_NTK.view(B, H, T, K)
    dtype = q_BHTK.dtype
    bias = torch.full((T, T), -math.inf, dtype=dtype).triu(1) if causal else torch.zeros((), dtype=dtype)
    scores_NTS = torch.baddbmm(bias, q_BHTK.flatten(0, 1), k_BHTK.flatten(0, 1).mT, alpha=K**-0.5)
    return (scores_NTS.softmax(-1) @ v_BHTK.flatten(0, 1)).view(B, H, T, K)


class Attention(nn.Module):
    """Multi-head attention; x_BTD -> x_BTD, position t sees positions up to t."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, rotary_2TK: Tensor) -> Tensor:
        """Return the block's update, BTD."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = heads(self.qkv(x_BTD).view(B, T, 3, self.n_head, -1), rotary_2TK)
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, causal=T > 1)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))
