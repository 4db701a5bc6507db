"""One pre-norm Transformer block."""

from collections.abc import Callable

from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.ffn import FFN
from model.layers import RMSNorm

EPS = 1e-6  # under the root of both norms; torch's own default for RMSNorm would depend on the dtype

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": lambda d_model: RMSNorm(d_model, EPS),  # Zhang & Sennrich, 2019
    "layer": lambda d_model: nn.LayerNorm(d_model, EPS, bias=False),  # Ba et al., 2016
    "none": lambda d_model: nn.Identity(),
}


class Block(nn.Module):
    """x + attn(norm(x)), then x + ffn(norm(x)), or without the FFN's residual ffn(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attn_norm = NORMS[config.norm](config.d_model)
        self.attn = Attention(config)
        self.ffn_norm = NORMS[config.norm](config.d_model)
        self.ffn = FFN(config)
        self.ffn_residual = config.ffn_residual

    def forward(self, x_BTD: Tensor, rotary_2TK: Tensor) -> Tensor:
        """Return the residual stream after this block, BTD."""
        dtype = x_BTD.dtype  # the stream's own, not autocast's; a sum of two types takes longer than cast and sum
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), rotary_2TK).to(dtype)
        y_BTD = self.ffn(self.ffn_norm(x_BTD)).to(dtype)
        return x_BTD + y_BTD if self.ffn_residual else y_BTD
