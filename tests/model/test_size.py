import dataclasses
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.gpt import GPT
from model.size import Size, size

SMALL = ModelConfig(n_layer=2, n_head=1, d_model=6, context=4)
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def with_activation(config: ModelConfig, name: str) -> ModelConfig:
    return dataclasses.replace(config, activation=name)


@pytest.mark.parametrize("name", ["gelu", "swiglu"])  # 2·6·24 = 3·6·16 weights in each FFN
def test_count_by_hand(name):
    s = size(with_activation(SMALL, name), n_vocab=10)
    attention, ffn, norms = 3 * 36 + 36, 288, 12
    assert s.embedding == 60
    assert s.ffn == 2 * ffn
    assert s.block == 2 * (attention + ffn + norms)
    assert s.total == 60 + 2 * 444 + 6
    assert s.flops_per_token == 6 * (60 + 2 * (attention + ffn)) + 12 * 2 * 6 * 4


def test_what_does_not_multiply_a_matrix_costs_no_flops(monkeypatch):
    plain = size(SMALL, n_vocab=10)
    more = size(dataclasses.replace(SMALL, activation="polyrelu", ffn_bias="zero", head="sigmoid"), n_vocab=10)
    assert more.total == plain.total + 2 * (4 + 6) + 1
    assert more.flops_per_token == plain.flops_per_token
    monkeypatch.setitem(ACTIVATIONS, "mix", lambda: torch.nn.Bilinear(2, 2, 2))
    assert size(with_activation(SMALL, "mix"), n_vocab=10).flops_per_token == plain.flops_per_token
    bare = size(dataclasses.replace(SMALL, norm="none"), n_vocab=10)
    assert bare.total == plain.total - 2 * 12
    assert bare.flops_per_token == plain.flops_per_token


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_flops_are_those_that_a_counter_sees(name):
    config = with_activation(SMALL, name)
    model, tokens_BT = GPT(config, n_vocab=64), torch.zeros(1, 4, dtype=torch.long)  # 64: no row pads it
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens_BT).sum().backward()
    assert counter.get_total_flops() == 4 * size(config, n_vocab=64).flops_per_token


def shapes() -> dict[str, ModelConfig]:
    shipped = {path.stem: tomllib.loads(path.read_text()).get("model", {}) for path in CONFIGS}
    widths = {str(d): {"d_model": d, "n_layer": 3} for d in (96, 128, 192, 384, 768)}
    return {name: ModelConfig(**{**model, "activation": "gelu"}) for name, model in (shipped | widths).items()}


def parity(config: ModelConfig, names: Iterable[str]) -> dict[str, Size]:
    """The size of each network, whose parameters and FLOPs have to agree to a hundredth."""
    sizes = {name: size(with_activation(config, name), 256) for name in names}  # so few tokens that the FFN weighs most
    for field in ("total", "flops_per_token"):
        found = [getattr(one, field) for one in sizes.values()]
        assert max(found) <= 1.01 * min(found)
    return sizes


@pytest.mark.parametrize("shape", shapes())
def test_parity_of_a_gated_and_an_ungated_ffn_in_every_shape(shape):
    config = shapes()[shape]
    for name, one in parity(config, ["gelu", "swiglu"]).items():
        if config.d_model % 3 == 0 or name == "gelu":
            assert one.ffn == config.n_layer * 8 * config.d_model**2


def test_parity_over_the_registry():
    config = ModelConfig(d_model=96, n_layer=3)
    for name, one in parity(config, ACTIVATIONS).items():
        own = sum(p.numel() for p in ACTIVATIONS[name]().parameters())
        assert one.ffn == 3 * (8 * 96**2 + own)


def test_configs_were_found():
    assert len(CONFIGS) >= 4
