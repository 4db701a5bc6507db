"""Attention on one CPU core in bf16: torch's fused kernel against the formula that model/gpt.py writes out, in turn.

python benchmarks/attention.py [--rounds 5]
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from rounds import ROUNDS, ratio, show, time_in_turn
from torch import Tensor

from model.gpt import attend

SHAPES = ((16, 4, 64, 48), (16, 4, 128, 48), (8, 6, 256, 64), (4, 12, 512, 64))  # B, H, T, K
FUSED, WRITTEN_OUT = partial(F.scaled_dot_product_attention, is_causal=True), partial(attend, causal=True)


def passes(attention: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int, int, int]) -> None:
    """Take three forward and backward passes."""
    B, H, T, K = shape
    qkv_BT3HK = torch.randn(B, T, 3, H, K, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(3):
        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
        attention(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, H * K).sum().backward()


def main(rounds: int = ROUNDS) -> None:
    """Print the ratio at each shape.

    Args:
        rounds: turns of each side
    """
    torch.set_num_threads(1)
    for shape in SHAPES:
        works = {
            "fused": lambda shape=shape: passes(FUSED, shape),
            "written out": lambda shape=shape: passes(WRITTEN_OUT, shape),
        }
        seconds = time_in_turn(works, rounds)
        show(f"B,H,T,K = {shape}: time of fused / written out", ratio(seconds["fused"], seconds["written out"]))


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/attention.py", description=__doc__)
