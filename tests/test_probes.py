import json
import math
import statistics
from typing import Any, cast

import pytest
import torch
from test_loop import records, same_weights
from torch import nn

from data.dataset import prepare
from errors import Interrupted, UserError
from model.activations import ACTIVATIONS, pointwise
from model.block import Block
from model.config import ModelConfig
from model.gpt import GPT
from training import probes
from training.config import TrainConfig, build
from training.loop import train
from training.measures import (
    agreement,
    calibration,
    cosine,
    log_slope,
    moments,
    rms,
    same_sign,
    slopes,
    spectrum,
)
from training.optim import build_optimizers
from training.path import Path
from training.probes import gate_histogram, measure, probe_steps, snapshot, watch, weights

GAUSSIAN = {  # E φ, E φ², E φ', E φ'², ρ at u ~ N(0, 1)
    "sigmoid": (0.5000, 0.2934, 0.2066, 0.0448, 0.852),
    "sigmoid_centered": (0, 0.0434, 0.2066, 0.0448, 0),
    "sigmoid_unit": (0, 0.6941, 0.8265, 0.7174, 0),
    "tanh": (0, 0.3943, 0.6057, 0.4644, 0),
    "relu": (0.3989, 0.5000, 0.5000, 0.5000, 0.318),
    "elu": (0.1605, 0.6449, 0.7616, 0.6681, 0.040),
    "selu": (0, 1.000, 0.9852, 1.0716, 0),
    "gelu": (0.2821, 0.4252, 0.5000, 0.4559, 0.187),
    "silu": (0.2066, 0.3558, 0.5000, 0.3795, 0.120),
    "mish": (0.2404, 0.4523, 0.5637, 0.4791, 0.128),
    "softplus": (0.8061, 0.9212, 0.5000, 0.2934, 0.705),
    "softsign": (0, 0.1830, 0.4128, 0.2277, 0),
    "relu2": (0.5000, 1.500, 0.7979, 2.000, 0.167),
    "hard_swish": (0.1662, 0.3316, 0.5000, 0.3585, 0.083),
}
AGREEMENT = {"sigmoid": 0.825, "softplus": 0.749, "relu": 0.603, "gelu": 0.560, "silu": 0.538, "tanh": 0.500}
VARIANTS = {
    "sigmoid_centered": pointwise(lambda u: torch.sigmoid(u) - 0.5),
    "sigmoid_unit": pointwise(lambda u: 4 * torch.sigmoid(u) - 2),
}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(activation="gelu", n_layer=3, optimizer: Any = "adamw"):
    model = GPT(ModelConfig(activation=activation, n_layer=n_layer, n_head=2, d_model=12, context=8), 17, 1)
    tokens_BT = torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(0))
    return model, build_optimizers(model, TrainConfig(optimizer=optimizer)), tokens_BT


def values(named):
    return {name: value.item() for name, value in named.items()}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_normal_pre_activations_give_the_figures_of_the_table(name):
    quantiles = torch.linspace(0, 1, 400_001, dtype=torch.float64)[:-1] + 0.5 / 400_000
    u_NF = (math.sqrt(2) * torch.erfinv(2 * quantiles - 1))[:, None]
    act = (VARIANTS.get(name) or ACTIVATIONS[name].factory)()
    h, slope = values(moments(act(u_NF))), values(slopes(act, u_NF))
    found = (h["mean"], h["mean"] ** 2 + h["sd"] ** 2, slope["slope"], slope["slope_square"], h["mean_share"])
    assert found == pytest.approx(GAUSSIAN[name], abs=5e-4)


@pytest.mark.parametrize("name", AGREEMENT)
def test_random_output_deltas_give_the_sign_agreement_that_the_mean_share_predicts(name):
    h_NF, delta_ND = ACTIVATIONS[name].factory()(normal(0, 1000, 300)), normal(1, 1000, 8000)
    _, pairs = same_sign(delta_ND.mT @ h_NF)
    assert agreement(GAUSSIAN[name][4]) == pytest.approx(AGREEMENT[name], abs=1e-3)
    assert pairs.item() == pytest.approx(AGREEMENT[name], abs=0.01)


@pytest.mark.parametrize("name", AGREEMENT)
def test_normalised_inputs_leave_the_signs_of_the_first_matrix_at_chance(name):
    x_ND = nn.functional.rms_norm(normal(0, 2000, 96), (96,))
    u_NF = x_ND @ normal(1, 96, 400) / math.sqrt(96)
    u_NF.requires_grad_()
    chance = 0.5 + 0.5 * sum(abs(2 * k - 96) / 96 * math.comb(96, k) for k in range(97)) / 2**96
    (delta_NF,) = torch.autograd.grad(ACTIVATIONS[name].factory()(u_NF), u_NF, normal(2, 2000, 400))
    for gradient_RD in (x_ND, delta_NF.mT @ x_ND):  # of single tokens, and of all
        share, pairs = same_sign(gradient_RD)
        assert share.item() == pytest.approx(chance, abs=0.01)
        assert pairs.item() == pytest.approx(0.5, abs=0.005)


def test_shares_of_signs_by_hand():
    share, pairs = same_sign(torch.tensor([[1.0, 2, 3, -4], [-1, 1, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]]))
    assert share.item() == pytest.approx((3 / 4 + 1 / 2) / 2)  # rows with fewer than two signs do not count
    assert pairs.item() == pytest.approx((3 / 6 + 0) / 2)  # of six pairs three agree; of one pair none


def test_moments_by_hand():
    found = values(moments(torch.tensor([[1.0, 2.0, 0.0], [3.0, -2.0, 0.0]])))
    assert found["mean"] == pytest.approx(4 / 6)
    assert found["sd"] == pytest.approx(math.sqrt(18 / 6 - (4 / 6) ** 2))
    assert found["mean_share"] == pytest.approx((4 / 5 + 0) / 2)  # a unit that never fires has no share


def test_saturated_and_dead_by_hand():
    u_NF = torch.zeros(2000, 4)
    u_NF[:, 1] = 9.0  # beyond 4.36, σ' is below a twentieth of a quarter
    u_NF[:, 2], u_NF[0, 2] = -9.0, 0.0  # active on one token of 2,000: dead
    u_NF[:, 3], u_NF[:3, 3] = -9.0, 0.0  # on three: alive
    found = values(slopes(nn.Sigmoid(), u_NF))
    assert found["dead"] == pytest.approx(2 / 4)
    assert found["saturated"] == pytest.approx((2000 + 1999 + 1997) / 8000)
    edge = torch.tensor([[4.35], [4.37]])
    assert values(slopes(nn.Sigmoid(), edge))["saturated"] == 0.5


def test_slopes_where_an_activation_holds_weights_leave_them_without_gradients():
    act = nn.PReLU(3)
    found = values(slopes(act, torch.tensor([[-1.0, -1, 2]])))
    assert found["slope"] == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert act.weight.grad is None


@pytest.mark.parametrize("shape", [(60, 5), (5, 60)])
def test_the_spectrum_is_that_of_the_singular_values(shape):
    h_NF = normal(3, *shape)
    eigenvalues = torch.linalg.svdvals(h_NF).square().tolist()
    share = [value / sum(eigenvalues) for value in eigenvalues]
    found = values(spectrum(h_NF))
    assert found["lambda_ratio"] == pytest.approx(max(eigenvalues) / (sum(eigenvalues) / shape[1]), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-4)


@pytest.mark.parametrize("h", [1e30, math.inf, math.nan])
def test_a_spectrum_that_overflows_is_no_number(h):
    assert all(math.isnan(value) for value in spectrum(torch.full((4, 3), h)).values())


def test_effective_rank_by_hand():
    assert values(spectrum(torch.eye(6))) == pytest.approx({"lambda_ratio": 1, "effective_rank": 6}, rel=1e-5)
    assert values(spectrum(torch.ones(6, 6))) == pytest.approx({"lambda_ratio": 6, "effective_rank": 1}, rel=1e-5)
    assert math.isnan(values(spectrum(torch.full((6, 6), math.nan)))["effective_rank"])


def test_calibration_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.38, 0.62], [0.69, 0.31]])
    found = values(calibration(p.log(), torch.tensor([0, 1, 1, 1])))
    assert found["accuracy"] == 0.5
    # bins of 1/15: .95 and .94 share one (its gaps: 1 − 1.89); .62 is in another (1 − .62) than .69 (0 − .69)
    assert found["ece"] == pytest.approx((0.89 + 0.38 + 0.69) / 4, abs=1e-6)


def test_log_slope_by_hand():
    assert log_slope([1.0, math.e, math.e**2]) == pytest.approx(1)
    assert log_slope([1.0, 1.0, math.e]) == pytest.approx(0.5)
    assert math.isnan(log_slope([1.0]))


def test_a_dead_network_has_no_ratio_over_depth():
    model, optimizers, tokens_BT = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    figures = measure(model, tokens_BT[:, :-1], tokens_BT[:, 1:], optimizers, None)
    for name in ("first_to_last", "scaled_first_to_last", "log_slope"):
        assert math.isnan(figures[f"grad/depth/{name}"])
    assert figures["grad/blocks.2/rms"] == figures["stream/blocks.2/rms"] == 0


def test_cosine_and_rms_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert cosine(a, b).item() == pytest.approx(24 / 25)
    assert rms(a).item() == pytest.approx(math.sqrt(12.5))


def test_the_steps_are_log_spaced():
    assert probe_steps(586, 3) == {586, 195, 65, 21, 7, 2, 0}
    assert probe_steps(20, 2) == {20, 10, 5, 2, 1, 0}
    assert probe_steps(1, 3) == {1, 0}
    assert probe_steps(586, 0) == set()
    with pytest.raises(UserError, match=r"train\.probes = 1"):
        build({"train": {"probes": 1}}, "it")


def test_gradients_are_those_of_autograd_by_hand():
    model, optimizers, tokens_BT = small("swiglu")
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found = measure(model, x_BT, y_BT, optimizers, None)

    stream = [model.embedding(x_BT)]
    for block in model.blocks:
        stream[-1].retain_grad()
        stream.append(block(stream[-1], model.rotary_2TK))
    logits_BTV = model.norm(stream[-1]) @ model.embedding.weight.T
    nn.functional.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten()).backward()
    norms = [x_BTD.grad.square().mean().sqrt().item() for x_BTD in stream[:-1] if x_BTD.grad is not None]
    assert [found[f"grad/blocks.{i}/rms"] for i in range(3)] == pytest.approx(norms, rel=1e-4)
    assert found["grad/depth/first_to_last"] == pytest.approx(norms[0] / norms[2], rel=1e-4)
    sizes = [x_BTD.detach().square().mean().sqrt().item() for x_BTD in stream[:-1]]
    assert [found[f"stream/blocks.{i}/rms"] for i in range(3)] == pytest.approx(sizes, rel=1e-4)
    scaled = norms[0] * sizes[0] / (norms[2] * sizes[2])
    assert found["grad/depth/scaled_first_to_last"] == pytest.approx(scaled, rel=1e-4)
    line = statistics.linear_regression(range(3), [math.log(norm) for norm in norms])
    assert found["grad/depth/log_slope"] == pytest.approx(line.slope, rel=1e-3)
    ffn = model.get_submodule("blocks.1.ffn")
    for part in ("up", "gate", "down"):
        gradient = ffn.get_parameter(f"{part}.weight").grad
        assert gradient is not None
        assert found[f"grad/blocks.1/{part}"] == pytest.approx(gradient.norm().item(), rel=1e-4)
        if part != "gate":
            share, pairs = same_sign(gradient)
            assert found[f"sign/blocks.1/{part}_batch"] == pytest.approx(share.item(), abs=2e-3)
            assert found[f"sign/blocks.1/{part}_batch_pairs"] == pytest.approx(pairs.item(), abs=2e-3)


def test_signs_of_a_sequence_and_of_a_token_are_those_of_its_own_gradient():
    model, optimizers, tokens_BT = small("gelu")
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found = measure(model, x_BT, y_BT, optimizers, None)
    for part in ("up", "down"):
        weight = model.get_parameter(f"blocks.1.ffn.{part}.weight")
        (gradient,) = torch.autograd.grad(model.loss(x_BT[:1], y_BT[:1]), weight)
        share, pairs = same_sign(gradient)
        assert found[f"sign/blocks.1/{part}_sequence"] == pytest.approx(share.item(), abs=2e-3)
        assert found[f"sign/blocks.1/{part}_sequence_pairs"] == pytest.approx(pairs.item(), abs=2e-3)
    # the last block is position-wise from attention on: the loss of one position has one token's gradient
    weight = model.get_parameter("blocks.2.ffn.down.weight")
    tokens = []
    for b, t in [(b, t) for b in range(2) for t in range(8)]:
        loss = nn.functional.cross_entropy(model(x_BT)[b, t], y_BT[b, t])
        tokens.append(same_sign(torch.autograd.grad(loss, weight)[0])[0].item())
    assert found["sign/blocks.2/down_token"] == pytest.approx(statistics.mean(tokens), abs=2e-3)
    positive = measure(small("sigmoid")[0], x_BT, y_BT, optimizers, None)
    assert positive["sign/blocks.2/down_token"] == positive["sign/blocks.2/down_token_pairs"] == 1  # σ > 0


def test_statistics_of_a_block_are_those_of_its_own_activations():
    model, optimizers, tokens_BT = small("glu")
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    model.get_parameter("blocks.0.ffn.gate.weight").data *= 200  # so that gates open and close
    found = measure(model, x_BT, y_BT, optimizers, None)
    block = cast(Block, model.blocks[0])
    assert block.ffn.gate is not None
    x_BTD = model.embedding(x_BT)
    x_BTD = x_BTD + block.attn(block.attn_norm(x_BTD), model.rotary_2TK)
    u_BTF = block.ffn.gate(block.ffn_norm(x_BTD))
    gate_BTF = torch.sigmoid(u_BTF)
    h_BTF = gate_BTF * block.ffn.up(block.ffn_norm(x_BTD))
    slope_BTF = gate_BTF * (1 - gate_BTF)
    by_hand = {
        "act/blocks.0/u_sd": u_BTF.std(correction=0),
        "act/blocks.0/slope": slope_BTF.mean(),
        "act/blocks.0/slope_square": slope_BTF.square().mean(),
        "act/blocks.0/saturated": (slope_BTF < 0.0125).float().mean(),
        "act/blocks.0/mean": h_BTF.mean(),
        "act/blocks.0/sd": h_BTF.std(correction=0),
        "ffn/blocks.0/mean": block.ffn.down(h_BTF).mean(),
        "ffn/blocks.0/sd": block.ffn.down(h_BTF).std(correction=0),
        "gate/blocks.0/mean": gate_BTF.mean(),
        "gate/blocks.0/below_0.1": (gate_BTF < 0.1).float().mean(),
        "gate/blocks.0/above_0.9": (gate_BTF > 0.9).float().mean(),
    }
    assert {name: found[name] for name in by_hand} == pytest.approx(values(by_hand), rel=1e-3, abs=1e-6)
    assert 0.05 < found["gate/blocks.0/above_0.9"] < 0.5
    histogram = gate_histogram(model, x_BT)["blocks.0"]
    assert histogram["edges"] == pytest.approx([-2 + i / 10 for i in range(41)], abs=1e-6)
    inside = ((gate_BTF > 0.5) & (gate_BTF < 0.6)).sum().item()
    assert (histogram["counts"][25], sum(histogram["counts"])) == (inside, gate_BTF.numel())
    assert gate_histogram(small("gelu")[0], x_BT) == {}


def test_the_head_by_hand():
    model, optimizers, tokens_BT = small()
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found = measure(model, x_BT, y_BT, optimizers, None)
    z_BTV = model(x_BT)
    assert found["head/sum_sigma"] == pytest.approx(z_BTV.sigmoid().sum(-1).mean().item())
    assert found["head/accuracy"] == pytest.approx((z_BTV.argmax(-1) == y_BT).float().mean().item())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_measurement_leaves_nothing_behind(optimizer: Any):
    model, optimizers, tokens_BT = small("swiglu", optimizer=optimizer)
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    before = snapshot(model)
    model.loss(x_BT, y_BT).backward()
    for one in optimizers:
        one.step()
        one.zero_grad()
    after, places = snapshot(model), [p.data_ptr() for p in model.parameters()]
    states, random = [len(one.state) for one in optimizers], torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        found = measure(model, x_BT, y_BT, optimizers, before)
    assert found == measure(model, x_BT, y_BT, optimizers, before)  # in fp32, whatever training uses
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())
    assert [p.data_ptr() for p in model.parameters()] == places
    assert [len(one.state) for one in optimizers] == states
    assert torch.equal(torch.get_rng_state(), random)
    assert all(isinstance(value, float) for value in found.values())
    assert any("near_eps" in name for name in found) == (optimizer != "sgd")
    fresh = build_optimizers(model, TrainConfig(optimizer=optimizer))
    measure(model, x_BT, y_BT, fresh, before)
    assert not any(one.state for one in fresh)


def test_hooks_and_weights_are_put_back_after_an_error_too():
    model, *_ = small()
    own = snapshot(model)
    zeros = {name: torch.zeros_like(p) for name, p in own.items()}
    broken = torch.full((1, 99), 0)  # longer than the context
    with (
        pytest.raises(ValueError, match="exceed the context"),
        watch(dict(model.named_modules())),
        weights(model, zeros),
    ):
        model(broken)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_the_last_step_by_hand():
    model, optimizers, tokens_BT = small()
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    name, weight = "blocks.1.ffn.down.weight", model.get_parameter("blocks.1.ffn.down.weight")
    before = snapshot(model)
    (earlier,) = torch.autograd.grad(model.loss(x_BT, y_BT), weight)
    model.loss(x_BT, y_BT).backward()
    optimizers[0].step()
    optimizers[0].zero_grad()
    (later,) = torch.autograd.grad(model.loss(x_BT, y_BT), weight)
    group = optimizers[0].param_groups[0]
    group["eps"] = earlier.abs().median().item() / 10  # after one step √v̂ is |g|: about half lies below
    found = measure(model, x_BT, y_BT, optimizers, before)
    step = (weight - before[name]).norm() / before[name].norm()
    assert found["update/blocks.1.ffn.down/reach"] == pytest.approx(step.item(), rel=1e-4)
    expected = torch.cosine_similarity(earlier.flatten(), later.flatten(), dim=0).item()
    assert found["grad/blocks.1/down_cosine"] == pytest.approx(expected, rel=1e-4)
    assert found["grad/blocks.1/down_cosine"] < 0.9999
    assert found["update/blocks.1.ffn.down/near_eps"] == pytest.approx(0.5, abs=0.01)
    assert found["update/embedding/reach"] > 0


def test_a_zig_zag_by_hand():
    model, *_ = small(n_layer=1)
    path, weight = Path(model), model.get_parameter("blocks.0.ffn.up.weight")
    right, up = torch.zeros_like(weight), torch.zeros_like(weight)
    right[0, 0], up[0, 1] = 1.0, 1.0
    moves = [right, up, up]
    for move in moves:
        with torch.no_grad():
            weight += move
        path.update()
    found = path.figures()
    assert found["path/blocks.0/up_efficiency"] == pytest.approx(math.sqrt(5) / 3, rel=1e-5)
    assert found["path/blocks.0/up_cosine"] == pytest.approx((0 + 1) / 2, abs=1e-5)
    for move in (-up, up, right + up):
        with torch.no_grad():
            weight += move
        path.update()
    assert path.figures()["path/blocks.0/up_cosine"] == pytest.approx((-1 - 1 + math.sqrt(0.5)) / 3, rel=1e-4)
    assert math.isnan(found["path/blocks.0/down_efficiency"])  # it never moved


@pytest.mark.parametrize(("activation", "optimizer"), [("swiglu", "muon"), ("sigmoid", "adamw"), ("prelu", "sgd")])
def test_probes_change_nothing_in_training(tiny, tmp_path, activation, optimizer):
    for name, factor in (("off", 0), ("on", 2)):
        train(tiny(model={"activation": activation}, train={"optimizer": optimizer, "probes": factor}), tmp_path / name)
    off, on = records(tmp_path / "off"), {record["step"]: record for record in records(tmp_path / "on")}
    assert all(record.items() <= on[record["step"]].items() for record in off)
    assert same_weights(tmp_path / "off", tmp_path / "on")
    assert {step for step, record in on.items() if "grad/blocks.0/rms" in record} == {0, 1, 2, 5, 10, 20}
    assert {step for step, record in on.items() if "path/blocks.0/up_cosine" in record} == {1, 2, 5, 10, 20}
    assert {step for step, record in on.items() if "update/embedding/reach" in record} == {1, 2, 5, 10, 20}
    assert not any("/blocks." in name for record in off for name in record)
    summary = json.loads((tmp_path / "on" / "summary.json").read_text())
    assert ("gate/histogram" in summary) == (activation == "swiglu")


@pytest.mark.parametrize("step", [0, 7, 9, 13])
def test_a_resumed_run_measures_the_same(tiny, tmp_path, stop_at, step):
    config = tiny(train={"probes": 2})
    train(config, tmp_path / "whole")
    stop_at(step)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert records(tmp_path / "whole")[-1]["path/blocks.1/down_efficiency"] < 1


def test_measuring_counts_as_time_of_the_run_but_not_of_training(tiny, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.clock.time.perf_counter", lambda: now[0])

    def step(*arguments):
        now[0] += 1
        return 1.0, 1.0

    def slow(*arguments):
        now[0] += 1000
        return {}

    monkeypatch.setattr("training.loop.train_step", step)
    monkeypatch.setattr(probes, "measure", slow)
    monkeypatch.setattr(probes, "snapshot", slow)
    monkeypatch.setattr(Path, "update", slow)
    monkeypatch.setattr(Path, "figures", slow)
    summary = train(tiny(), tmp_path / "run")
    assert summary["perf/train_seconds"] == 20
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["time"] > 1000


def test_the_probe_batch_is_the_start_of_the_validation_split(tiny, tmp_path):
    config = tiny()
    data = prepare(config.data)
    model = GPT(config.model, data.tokenizer.n_vocab)
    made = probes.Probes(model, [], data.val, 20, 3)
    assert made.x_BT.shape == (probes.SEQUENCES, config.model.context)
    assert made.x_BT.flatten().tolist() == data.val.tokens_N[: made.x_BT.numel()].tolist()
    assert made.y_BT.flatten().tolist() == data.val.tokens_N[1 : made.x_BT.numel() + 1].tolist()
