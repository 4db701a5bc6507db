"""What a network is, as data. Free of torch, so that the doors answer `--help` at once."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from errors import UserError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig:
    """The shape of a GPT. The vocabulary size is the tokenizer's and is passed beside it."""

    activation: Annotated[str, Field(description="FFN activation, a name of the registry")] = "gelu"
    n_layer: Annotated[int, Field(gt=0, description="blocks")] = 4
    n_head: Annotated[int, Field(gt=0, description="attention heads; divides d_model")] = 4
    d_model: Annotated[int, Field(gt=0, description="width of the residual stream")] = 128
    context: Annotated[int, Field(gt=0, description="longest sequence, tokens")] = 128

    def __post_init__(self):
        if self.d_model % self.n_head or (self.d_model // self.n_head) % 2:
            fits = [n for n in range(1, self.d_model // 2 + 1) if self.d_model % (2 * n) == 0]
            nearest = min(fits, key=lambda n: abs(n - self.n_head), default=None)
            raise UserError(
                f"d_model {self.d_model} does not split into {self.n_head} heads of an even width (rotary positions "
                f"turn pairs). " + (f"Nearest n_head that fits: {nearest}." if nearest else "d_model must be even.")
            )
        from model.activations import check_name  # here, since the registry needs torch

        check_name(self.activation)
