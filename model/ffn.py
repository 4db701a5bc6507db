"""The feed-forward network, where the choice of activation lives."""

from torch import Tensor, nn

from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.layers import Linear


def ffn_width(d_model: int, gated: bool) -> int:
    """Return the hidden width F that costs 8·d_model² weights: 2·d·4d ungated, 3·d·(8d/3) gated (Shazeer, 2020)."""
    return 8 * d_model // 3 if gated else 4 * d_model


class FFN(nn.Module):
    """down(act(up x)), or down(act(gate x) * on_up(up x)) where the activation gates; x_BTD -> x_BTD."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        width = ffn_width(config.d_model, activation.gated)
        self.gate = Linear(config.d_model, width, bias=False) if activation.gated else None
        self.up = Linear(config.d_model, width, bias=False)
        self.act, self.on_up = activation.factory(), activation.on_up
        self.down = Linear(width, config.d_model, bias=config.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the block's update, BTD."""
        u_BTF = self.up(x_BTD)
        h_BTF = self.act(u_BTF) if self.gate is None else self.act(self.gate(x_BTD)) * self.on_up(u_BTF)
        return self.down(h_BTF)
