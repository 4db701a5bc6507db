import numpy as np
import pytest
import torch
from test_activations import GATED, hidden

from model.activations import ACTIVATIONS
from model.config import ModelConfig
from model.ffn import FFN, ffn_width


def loud_ffn(name: str) -> FFN:
    """An FFN in float64 whose pre-activations reach every bend of every formula."""
    torch.manual_seed(0)
    ffn = FFN(ModelConfig(activation=name, n_head=1, d_model=12)).double()
    for linear in (ffn.gate, ffn.up, ffn.down):
        if linear is not None:
            torch.nn.init.normal_(linear.weight)
    return ffn


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_is_two_matrices_around_the_named_formula(name):
    ffn = loud_ffn(name)
    x_ND = np.random.default_rng(0).standard_normal((40, 12))
    weight = {key: w.double().numpy() for key, w in ffn.state_dict().items()}
    u_NF = x_ND @ weight["up.weight"].T
    assert u_NF.min() < -8
    assert u_NF.max() > 8
    h_NF = hidden(name, u_NF, x_ND @ weight["gate.weight"].T if name in GATED else None)
    y_ND = ffn(torch.from_numpy(x_ND).view(5, 8, 12)).detach().view(40, 12)
    np.testing.assert_allclose(y_ND, h_NF @ weight["down.weight"].T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_act_is_a_submodule_that_sees_the_pre_activation(name):
    ffn, seen = loud_ffn(name), []
    assert dict(ffn.named_children())["act"] is ffn.act
    assert type(ffn.act) is type(ACTIVATIONS[name].factory())
    ffn.act.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
    x_BTD = torch.randn(2, 3, 12, dtype=torch.float64)
    ffn(x_BTD)
    u_BTF, h_BTF = seen
    assert torch.equal(u_BTF, (ffn.gate or ffn.up)(x_BTD))
    assert h_BTF.shape == (2, 3, ffn_width(12, name in GATED))


@pytest.mark.parametrize("d_model", [6, 96, 192, 384, 768])
def test_gated_width_is_two_thirds(d_model):
    assert ffn_width(d_model, gated=False) == 4 * d_model
    assert 3 * ffn_width(d_model, gated=True) == 2 * ffn_width(d_model, gated=False)


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_bias_is_on_the_output_alone(name):
    plain, biased = (FFN(ModelConfig(activation=name, n_head=1, d_model=12, ffn_bias=b)) for b in (False, True))
    assert {key for key, _ in biased.named_parameters()} - {key for key, _ in plain.named_parameters()} == {"down.bias"}
    biased.load_state_dict(plain.state_dict() | {"down.bias": torch.arange(12.0)})
    x_BTD = torch.randn(2, 3, 12)
    torch.testing.assert_close(biased(x_BTD), plain(x_BTD) + torch.arange(12.0))
