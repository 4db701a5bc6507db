"""A GPT that reads on from what it has read: a cache of keys and values, and a flat loop over the layers.

For one new position, modules and checks would take Python as long as the products take. So whatever depends on the
network, the device or the dtype is decided once, before the first position, and is equal to `GPT.forward` in rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend, rotate
from model.block import Block
from model.ffn import FFN
from model.gpt import GPT
from model.layers import BF16, PACK, RMSNorm, linear, onednn

Function = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """A block in parts, and its keys and values."""

    attn_norm: Function
    qkv: Function
    out: Function
    ffn_norm: Function
    ffn: Function
    ffn_residual: bool
    cache_2BHTK: Tensor


class Decoder:
    """Keys and values of `length` positions of every row, B, and what it takes to read the next.

    `product` makes x Wᵀ of a matrix W.
    """

    def __init__(self, model: GPT, batch: int, dtype: torch.dtype, product: Callable[[Tensor], Function]):
        c, self.length = model.config, 0
        self.context, self.n_head, self.dtype = c.context, c.n_head, dtype
        self.embedding, self.head = model.embedding.weight, model.head
        cos_TK, sin_TK = model.rotary_2TK.to(dtype)  # for queries and keys; values turn with them, by no angle
        one, zero = torch.ones_like(cos_TK), torch.zeros_like(cos_TK)
        self.rotary_23TK = torch.stack((torch.stack((cos_TK, cos_TK, one)), torch.stack((sin_TK, sin_TK, zero))))
        shape = (2, batch, c.n_head, c.context, c.d_model // c.n_head)
        self.layers = [
            _Layer(
                _norm(block.attn_norm),
                product(block.attn.qkv.weight),
                product(block.attn.out.weight),
                _norm(block.ffn_norm),
                _ffn(block.ffn, product),
                block.ffn_residual,
                torch.empty(shape, device=self.embedding.device, dtype=dtype),
            )
            for block in cast(Iterable[Block], model.blocks)
        ]
        self.norm, self.scores = _norm(model.norm), product(self.embedding)

    def read(self, tokens_BT: Tensor) -> Tensor:
        """Read T more positions, many only as the first, and return the logits of what follows the last one, BV.

        Raises:
            ValueError: more positions than the context; or several after others, whose mask would be another one.
        """
        (B, T), start = tokens_BT.shape, self.length
        end = start + T
        if end > self.context:
            raise ValueError(f"{end} tokens exceed the context of {self.context}")
        if start and T > 1:
            raise ValueError("after the first positions, they come one at a time")
        cos_31TK, sin_31TK = self.rotary_23TK[:, :, None, None, start:end].unbind()
        x_BTD = F.embedding(tokens_BT, self.embedding)
        for attn_norm, qkv, out, ffn_norm, ffn, ffn_residual, cache_2BHTK in self.layers:
            qkv_3BHTK = qkv(attn_norm(x_BTD)).view(B, T, 3, self.n_head, -1).to(self.dtype).permute(2, 0, 3, 1, 4)
            qkv_3BHTK = rotate(qkv_3BHTK, cos_31TK, sin_31TK)
            cache_2BHTK.narrow(3, start, T).copy_(qkv_3BHTK[1:])
            # one new position may see every earlier one; the first ones are causal among themselves
            y_BHTK = attend(qkv_3BHTK[0], *cache_2BHTK.narrow(3, 0, end).unbind(), causal=T > 1)
            x_BTD = x_BTD + out(y_BHTK.transpose(1, 2).reshape(B, T, -1))
            y_BTD = ffn(ffn_norm(x_BTD))
            x_BTD = x_BTD + y_BTD if ffn_residual else y_BTD.to(x_BTD.dtype)
        self.length = end
        return self.head(self.scores(self.norm(x_BTD[:, -1:])))[:, 0]


@contextmanager
def decoding(model: GPT, batch: int) -> Iterator[Decoder]:
    """Yield the model as a decoder of so many rows; its weights must not change meanwhile.

    Under bf16 autocast on a CPU every product would cast its weight anew, which for a few rows takes longer than the
    product. Where oneDNN has bf16, they hold theirs in it, and all else is in the weights' own dtype, keys and values
    too: their products of one position take longer in bf16 than in fp32. One row is read in fp32 altogether.
    """
    weight, kind = model.embedding.weight, model.embedding.weight.device.type
    to = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    single = kind == "cpu" and all(p.dtype == torch.float32 for p in model.parameters())
    half = to == torch.bfloat16 and (batch == 1 or (BF16 and PACK is not None))
    packed = single and (half or to is None)
    product = partial(_packed, rows=batch, dtype=to or torch.float32) if packed else _plain
    with torch.autocast(kind, enabled=False) if packed else nullcontext():
        yield Decoder(model, batch, weight.dtype if packed else to or weight.dtype, product)


def _plain(weight_OI: Tensor) -> Function:
    """Return the product x Wᵀ of a matrix W, as in `GPT.forward`."""
    return partial(linear, weight_OI=weight_OI)


def _packed(weight_OI: Tensor, rows: int, dtype: torch.dtype) -> Function:
    """Return the product with W in oneDNN's own layout for so many rows, and for one row in W's dtype by blocks."""
    if rows == 1:
        return _by_blocks(weight_OI)
    if PACK is None:
        return _plain(weight_OI)
    own = PACK(weight_OI.detach().to(dtype), rows)
    return lambda x: onednn(x.to(dtype), own)


def _by_blocks(weight_OI: Tensor) -> Function:
    """Return the product by a block of rows a thread, where F.linear of one x is left to one thread."""
    (O, I), C = weight_OI.shape, torch.get_num_threads()
    blocks_CoI = F.pad(weight_OI.detach(), (0, 0, 0, -O % C)).view(C, -1, I)  # rows of zeros fill the last

    def product(x: Tensor) -> Tensor:
        if x.numel() != I:
            return linear(x, weight_OI)
        x_CI1 = x.contiguous().as_strided((C, I, 1), (0, 1, I))  # strides (1, 1) of a column take four times as long
        y_11O = torch.bmm(blocks_CoI, x_CI1).view(1, 1, -1)
        return y_11O[..., :O] if O % C else y_11O

    return product


def _norm(norm: nn.Module) -> Function:
    """RMSNorm of one position in fewer calls, on a CPU."""
    if type(norm) is not RMSNorm or norm.weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return norm
    weight_D, eps = norm.weight, torch.tensor(norm.eps, dtype=norm.weight.dtype, device=norm.weight.device)

    def normed(x_BTD: Tensor) -> Tensor:
        if x_BTD.shape[1] > 1:
            return norm(x_BTD)
        mean_square_B11 = torch.baddbmm(eps, x_BTD, x_BTD.mT, alpha=1 / len(weight_D))
        return torch.mul(x_BTD, mean_square_B11.rsqrt_()).mul_(weight_D)

    return normed


def _ffn(ffn: FFN, product: Callable[[Tensor], Function]) -> Function:
    up, down, bias = product(ffn.up.weight), product(ffn.down.weight), ffn.down.bias
    act, on_up = _act(ffn.act) if ffn.up.weight.device.type == "cpu" else ffn.act, ffn.on_up
    plain = down if bias is None else lambda h_BTF: down(h_BTF) + bias
    if ffn.gate is None:
        return lambda x_BTD: plain(act(up(x_BTD)))
    gate = product(ffn.gate.weight)
    return lambda x_BTD: plain(act(gate(x_BTD)) * on_up(up(x_BTD)))


def _act(act: nn.Module) -> Function:
    """The activation without torch's own use of oneDNN, whose set-up outlasts a GELU of a few rows.

    One with weights gets what it reads in their dtype, since autocast, which would see to that, may be off.
    """
    weight = next(act.parameters(), None)

    def plain(u_BTF: Tensor) -> Tensor:
        enabled = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False
        try:
            return act(u_BTF if weight is None else u_BTF.to(weight.dtype))
        finally:
            torch.backends.mkldnn.enabled = enabled

    return plain
