"""One pre-norm Transformer block."""

from torch import Tensor, nn

from model.attention import Attention, KVCache
from model.config import ModelConfig
from model.ffn import FFN

EPS = 1e-6  # under the root of RMSNorm; torch's own default would depend on the dtype


class Block(nn.Module):
    """x + attn(norm(x)), then x + ffn(norm(x)); RMSNorm (Zhang & Sennrich, 2019)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.d_model, EPS)
        self.attn = Attention(config, layer)
        self.ffn_norm = nn.RMSNorm(config.d_model, EPS)
        self.ffn = FFN(config)

    def forward(self, x_BTD: Tensor, rotary_2TK: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the residual stream after this block, BTD."""
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), rotary_2TK, cache)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))
