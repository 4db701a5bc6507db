import json
import math
import statistics
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import records, same_weights, train_and_stop, values
from torch import nn

from data.encode import Split
from errors import UserError
from model.config import ModelConfig
from model.gpt import GPT, Block
from training.config import TrainConfig, build
from training.loop import train
from training.optim import build_optimizers
from training.probes import probes
from training.probes.measures import same_sign
from training.probes.path import WeightPath
from training.probes.probes import Probes, gate_histogram, measure, probe_steps, snapshot

pytestmark = pytest.mark.usefixtures("no_sample")


def small(activation="gelu", n_layer=3, optimizer: Any = "adamw"):
    model = GPT(ModelConfig(activation=activation, n_layer=n_layer, n_head=2, d_model=12, context=8), 17, 1)
    tokens_BT = torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(0))
    return model, build_optimizers(model, TrainConfig(optimizer=optimizer)), tokens_BT


def test_a_dead_network_has_no_ratio_over_depth():
    model, optimizers, tokens_BT = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    figures = measure(model, tokens_BT[:, :-1], tokens_BT[:, 1:], optimizers, None)
    for name in ("first_to_last", "scaled_first_to_last", "up_first_to_last", "log_slope"):
        assert math.isnan(figures[f"grad/depth/{name}"])
    assert figures["grad/blocks.2/rms"] == figures["stream/blocks.2/rms"] == 0


def test_the_steps_are_log_spaced():
    assert probe_steps(586, 3) == {586, 195, 65, 21, 7, 2, 0}
    assert probe_steps(20, 2) == {20, 10, 5, 2, 1, 0}
    assert probe_steps(1, 3) == {1, 0}
    assert probe_steps(586, 0) == set()
    with pytest.raises(UserError, match=r"train\.probes = 1"):
        build({"train": {"probes": 1}}, "it")


def test_the_batch_is_2048_tokens_of_all_documents_of_the_validation_split():
    model, optimizers, _ = small()
    split = Split(np.repeat(np.arange(4, dtype=np.uint16), 2500), n_bytes=10_000, n_documents=4)  # one token a document
    batch = Probes(model, optimizers, split, steps=10, factor=2).x_BT
    assert batch.shape == (256, 8)
    assert [(batch == document).float().mean().item() for document in range(4)] == pytest.approx([0.25] * 4, abs=0.01)


def test_gradients_are_those_of_autograd_by_hand():
    model, optimizers, tokens_BT = small("swiglu")
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found = measure(model, x_BT, y_BT, optimizers, None)

    stream = [model.embedding(x_BT)]
    for block in model.blocks:
        stream[-1].retain_grad()
        stream.append(block(stream[-1], model.rotary_2TK))
    logits_BTV = model.norm(stream[-1]) @ model.embedding.weight[:17].T
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
    up = [model.get_parameter(f"blocks.{i}.ffn.up.weight").grad for i in (0, 2)]
    first, last = (gradient.norm().item() for gradient in up if gradient is not None)
    assert found["grad/depth/up_first_to_last"] == pytest.approx(first / last, rel=1e-4)
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
        (gradient,) = torch.autograd.grad(model(x_BT[:1], y_BT[:1]), weight)
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
    model(x_BT, y_BT).backward()
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


def test_the_last_step_by_hand():
    model, optimizers, tokens_BT = small()
    x_BT, y_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    name, weight = "blocks.1.ffn.down.weight", model.get_parameter("blocks.1.ffn.down.weight")
    before = snapshot(model)
    (earlier,) = torch.autograd.grad(model(x_BT, y_BT), weight)
    model(x_BT, y_BT).backward()
    optimizers[0].step()
    optimizers[0].zero_grad()
    (later,) = torch.autograd.grad(model(x_BT, y_BT), weight)
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
    path, weight = WeightPath(model), model.get_parameter("blocks.0.ffn.up.weight")
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


def test_a_resumed_run_measures_the_same(tiny, tmp_path, stop_at):
    config = tiny(train={"probes": 2})
    train(config, tmp_path / "whole")
    for step in (0, 7, 9, 13):
        train_and_stop(config, tmp_path / "parts", stop_at, step)
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert records(tmp_path / "whole")[-1]["path/blocks.1/down_efficiency"] < 1


def test_measuring_counts_as_time_of_the_run_but_not_of_training(tiny, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def step(*arguments):
        now[0] += 1
        return 1.0, 1.0

    def slow(*arguments):
        now[0] += 1000
        return {}

    monkeypatch.setattr("training.loop.train_step", step)
    monkeypatch.setattr(probes, "measure", slow)
    monkeypatch.setattr(probes, "snapshot", slow)
    monkeypatch.setattr(WeightPath, "update", slow)
    monkeypatch.setattr(WeightPath, "figures", slow)
    summary = train(tiny(), tmp_path / "run")
    assert summary["perf/train_seconds"] == 20
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["time"] > 1000
