"""Attention on one CPU core in bf16: torch's fused kernel against the plain formula, in turn, medians of five.

python benchmarks/attention.py [--json figures.json]
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import tyro
from rounds import Output, in_turn, ratio, save, say
from torch import Tensor

from model import attention

SHAPES = ((16, 4, 64, 48), (16, 4, 128, 48), (8, 6, 256, 64), (4, 12, 512, 64), (2, 12, 1024, 64))  # B, H, T, K
KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "plain": lambda q, k, v: attention.attend(q, k, v, causal=True),
}


def passes(kernel: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int, int, int]) -> None:
    """Take three forward and backward passes."""
    B, H, T, K = shape
    qkv_BT3HK = torch.randn(B, T, 3, H, K, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(3):
        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
        kernel(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, H * K).sum().backward()


def main() -> None:
    """Print the ratio at each shape."""
    command = tyro.cli(Output, prog="python benchmarks/attention.py", description=__doc__)
    torch.set_num_threads(1)
    attention.PLAIN_UP_TO = 1 << 30
    figures = {}
    for shape in SHAPES:
        works = {name: lambda kernel=kernel, shape=shape: passes(kernel, shape) for name, kernel in KERNELS.items()}
        times = in_turn(works)
        figures[str(shape)] = ratio(times["fused"], times["plain"])
        say(f"B,H,T,K = {shape}: fused / plain", figures[str(shape)])
    save(command.json, figures)


if __name__ == "__main__":
    main()
