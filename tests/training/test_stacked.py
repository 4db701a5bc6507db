"""The stack's step and score against each model's own."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_score import Noisy

from data.dataset import Split
from model.activations import ACTIVATIONS, Activation
from model.gpt import GPT
from training import stacked
from training.config import RunConfig, build
from training.evaluate import score
from training.optim import build_optimizers
from training.stacked import Stack, room
from training.step import train_step

TOKENS_N = np.random.default_rng(0).integers(23, size=200).astype(np.uint16)
LRS = [1e-2, 3e-3]


def small(model=None, **train) -> list[RunConfig]:
    """Two runs that differ in their seed."""
    model = {"n_layer": 1, "n_head": 2, "d_model": 16, "context": 8} | (model or {})
    return [build({"model": model, "train": {"batch_size": 4, "seed": seed} | train}, "test") for seed in (0, 1)]


def models_of(configs, device="cpu"):
    models = [GPT(config.model, 23, config.train.seed).to(device) for config in configs]
    return models, [build_optimizers(model, config.train) for model, config in zip(models, configs, strict=True)]


def steps(configs, precision="fp32", count=1, spoil=lambda models: None, device="cpu"):
    """Return what `count` steps give, and the weights after them: alone, and stacked."""
    models, optimizers = models_of(configs, device)
    spoil(models)
    pairs = [*zip(configs, models, optimizers, LRS, strict=True)]
    alone = [[train_step(m, o, TOKENS_N, c, n, lr, precision) for c, m, o, lr in pairs] for n in range(count)]
    others, optimizers = models_of(configs, device)
    spoil(others)
    stack = Stack(others, configs[0])
    together: list[Any] = [stack.step(optimizers, [TOKENS_N] * 2, configs, n, LRS, precision) for n in range(count)]
    return alone, together, models, others


def close(models, others, **tolerance):
    for model, other in zip(models, others, strict=True):
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q, p, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_stacks_in_both_precisions(activation):
    # under SGD, unlike AdamW, the size of a gradient is the size of a step
    alone, together, models, others = steps(small({"activation": activation}, optimizer="sgd"))
    assert torch.tensor(together) == pytest.approx(torch.tensor(alone), abs=1e-5)
    close(models, others, rtol=1e-6, atol=1e-7)
    alone, together, _, _ = steps(small({"activation": activation}), "bf16")
    assert torch.tensor(together) == pytest.approx(torch.tensor(alone), rel=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_runs_stack_on_a_gpu(activation, precision):
    alone, together, _, _ = steps(small({"activation": activation}, optimizer="sgd"), precision, 3, device="cuda")
    assert torch.tensor(together) == pytest.approx(torch.tensor(alone), rel={"fp32": 1e-4, "bf16": 2e-2}[precision])


@pytest.mark.parametrize(
    "model", [{"norm": "layer"}, {"norm": "none"}, {"head": "sigmoid"}, {"head": "sigsoftmax"}, {"ffn_bias": True}]
)
def test_every_part_of_the_network_stacks(model):
    alone, together, models, others = steps(small(model, optimizer="sgd"), count=2)
    assert torch.tensor(together) == pytest.approx(torch.tensor(alone), abs=1e-5)
    close(models, others, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("train", [{"clip": 0.0}, {"clip": 0.05}, {"accumulate": 2}, {"clip": 10.0}])
def test_gradients_are_clipped_run_by_run_and_micro_batches_add_up(train):
    alone, together, models, others = steps(small(optimizer="sgd", **train), count=3)
    assert torch.tensor(together) == pytest.approx(torch.tensor(alone), abs=1e-5)
    close(models, others, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_step_that_is_not_finite_leaves_its_run_as_it_was_and_the_other_goes_on(optimizer):
    def spoil(models):
        models[1].get_parameter("blocks.0.ffn.up.weight").data[0, 0] = float("nan")

    configs = small(optimizer=optimizer, nonfinite="skip")
    alone, together, models, others = steps(configs, count=2, spoil=spoil)
    assert np.isnan(together[1][1]).all()
    assert together[1][0] == pytest.approx(alone[1][0], abs=1e-3)  # Muon works in bf16
    close(models[:1], others[:1], rtol=1e-2, atol=1e-3)
    for p, q in zip(models[1].parameters(), others[1].parameters(), strict=True):
        assert torch.equal(p.nan_to_num(7), q.nan_to_num(7))


def test_a_run_that_must_stop_says_where_it_began_in_the_words_of_a_run_alone():
    configs = small()
    models, optimizers = models_of(configs)
    models[1].get_parameter("blocks.0.ffn.up.weight").data[0, 0] = float("inf")
    lonely = copy.deepcopy(models[1])
    with pytest.raises(FloatingPointError) as alone:
        train_step(lonely, build_optimizers(lonely, configs[1].train), TOKENS_N, configs[1], 4, 1e-2, "fp32")
    answers = Stack(models, configs[0]).step(optimizers, [TOKENS_N] * 2, configs, 4, LRS, "fp32")
    assert isinstance(answers[0], tuple)
    assert str(answers[1]) == str(alone.value)
    assert "at step 5; the first that is not finite is the output of blocks.0.ffn.up." in str(answers[1])


@pytest.mark.parametrize("activation", ["gelu", "noisy"])
def test_scores_are_those_of_each_model(monkeypatch, activation):
    monkeypatch.setitem(ACTIVATIONS, "noisy", Activation(Noisy))
    configs = small({"activation": activation})
    models, _ = models_of(configs)
    split = Split(TOKENS_N, n_bytes=300, n_documents=1)
    alone = [score(copy.deepcopy(model), split, config, "fp32") for model, config in zip(models, configs, strict=True)]
    together = Stack(models, configs[0]).score(split, "fp32")
    for one, other in zip(alone, together, strict=True):
        assert other.named("val") == pytest.approx(one.named("val"), rel=1e-6)
        np.testing.assert_allclose(other.windows, one.windows, rtol=1e-5)
    assert abs(together[0].loss - together[1].loss) > 1e-3


def test_twice_the_memory_holds_twice_the_runs_and_one_always_goes(monkeypatch):
    config = small()[0]
    monkeypatch.setattr(stacked, "free_memory", lambda _: 1)
    assert room(config, 23, torch.device("cpu")) == 1
    rooms = []
    for memory in (1e9, 2e9):
        monkeypatch.setattr(stacked, "free_memory", lambda _, memory=memory: int(memory))
        rooms.append(room(config, 23, torch.device("cpu")))
    assert rooms[0] > 100
    assert rooms[1] == pytest.approx(2 * rooms[0], abs=1)
