"""What a network is, as data."""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from errors import STRICT, UserError


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The shape of a GPT. The vocabulary size is the tokenizer's and is passed beside it."""

    activation: Annotated[str, Field(description="FFN activation, a name of the registry")] = "gelu"
    n_layer: Annotated[int, Field(gt=0, description="blocks")] = 4
    n_head: Annotated[int, Field(gt=0, description="attention heads; divides d_model")] = 4
    d_model: Annotated[int, Field(gt=0, lt=2**20, description="width of the residual stream")] = 128
    context: Annotated[int, Field(gt=0, description="longest sequence, tokens")] = 128
    norm: Annotated[
        Literal["rms", "none"],
        Field(description="RMSNorm before each branch, or no norm in the blocks (the last one stays)"),
    ] = "rms"
    ffn_residual: Annotated[bool, Field(description="add the FFN to its input; false: replace the input by it")] = True
    ffn_bias: Annotated[
        Literal["none", "zero", "centering"],
        Field(
            description="bias on the FFN's output; at the start 0, or what takes the mean of the hidden units out of it"
        ),
    ] = "none"
    init: Annotated[
        Literal["gpt2", "second_moment", "slope"],
        Field(description="FFN weights: GPT-2's, or keeping the second moment, or the gradient's norm"),
    ] = "gpt2"
    head: Annotated[
        Literal["softmax", "sigmoid", "normalized_sigmoid", "sigsoftmax"],  # the names of model/heads.py
        Field(description="from scores to probabilities, and the loss that trains them"),
    ] = "softmax"

    plugin: Annotated[str, Field(description="file that adds the activation; --plugin fills it in")] = ""
    plugin_sha256: Annotated[str, Field(description="hash of that file")] = ""

    def __post_init__(self):
        if self.d_model % self.n_head or (self.d_model // self.n_head) % 2:
            half = self.d_model // 2
            fits = [n for n in range(1, math.isqrt(half) + 1) if self.d_model % (2 * n) == 0]
            nearest = min(fits + [half // n for n in fits], key=lambda n: (abs(n - self.n_head), n), default=None)
            raise UserError(
                f"d_model {self.d_model} does not split into {self.n_head} heads of an even width (rotary positions "
                f"turn pairs). " + (f"Nearest n_head that fits: {nearest}." if nearest else "d_model must be even.")
            )
        # Imported here: the registry needs torch, and --help must answer at once.
        from model.activations import check_name
        from model.plugin import origin

        check_name(self.activation, self.plugin)
        path, digest = origin(self.activation)
        if path and self.plugin_sha256 and digest != self.plugin_sha256:
            raise UserError(
                f"the plugin {path} is not the file that this run was trained with (its SHA-256 is {digest[:12]}…, not "
                f"{self.plugin_sha256[:12]}…). Restore that file, or train the run anew with another --out."
            )
        if not self.plugin_sha256:
            # A run knows where its activation comes from. A name of the registry comes from no plugin.
            object.__setattr__(self, "plugin", path)
            object.__setattr__(self, "plugin_sha256", digest)
