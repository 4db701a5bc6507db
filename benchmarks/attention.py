"""Attention on one CPU core in bf16: torch's fused kernel against the plain formula, in turn, median of five.

python benchmarks/attention.py
"""

import statistics
import time

import torch
import torch.nn.functional as F

from model import attention

SHAPES = ((16, 4, 64, 48), (16, 4, 128, 48), (8, 6, 256, 64), (4, 12, 512, 64), (2, 12, 1024, 64))  # B, H, T, K


def seconds(kernel, shape: tuple[int, int, int, int]) -> float:
    """Return how long three forward and backward passes take."""
    B, H, T, K = shape
    qkv = torch.randn(B, T, 3, H, K, dtype=torch.bfloat16, requires_grad=True)
    began = time.perf_counter()
    for _ in range(3):
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        kernel(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, H * K).sum().backward()
    return time.perf_counter() - began


def main() -> None:
    """Print the ratio at each shape."""
    torch.set_num_threads(1)
    attention.PLAIN_UP_TO = 1 << 30
    for shape in SHAPES:
        pairs = [
            (
                seconds(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), shape),
                seconds(lambda q, k, v: attention.attend(q, k, v, causal=True), shape),
            )
            for _ in range(6)
        ][1:]
        ratios = [fused / plain for fused, plain in pairs]
        print(
            f"B,H,T,K = {shape}: fused/plain = {statistics.median(ratios):.2f}  "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
