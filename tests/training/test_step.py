"""One optimiser step by itself: its batch, its gradient, clipping."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.batches import train_batch
from model.gpt import GPT
from training.config import build
from training.optim import build_optimizers
from training.step import train_step

TOKENS_N = np.random.default_rng(0).integers(23, size=300).astype(np.uint16)


def make(**train):
    model = {"n_layer": 1, "n_head": 2, "d_model": 16, "context": 8}
    config = build(
        {"model": model, "train": {"batch_size": 4, "optimizer": "sgd", "weight_decay": 0.0} | train}, "test"
    )
    gpt = GPT(config.model, 23, config.train.seed)
    return config, gpt, build_optimizers(gpt, config.train)


def gradient_of(config, model, step):
    """Return the loss and the gradient of a step's batch, without train_step."""
    x_BT, y_BT = train_batch(TOKENS_N, config.train.seed, step, 4, 8)
    loss = F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten())
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("clip", "moved"), [(0.0, None), (100.0, None), (0.25, 0.25)], ids=["off", "above", "below"])
def test_a_gradient_is_clipped_to_its_norm_and_its_norm_before_is_returned(clip, moved, accumulate):
    config, model, optimizers = make(clip=clip, accumulate=accumulate, momentum=0.0)
    expected, gradient = gradient_of(config, model, 3)
    before = flat(model)
    loss, norm = train_step(model, optimizers, TOKENS_N, config, 3, 0.5, "fp32")
    assert loss == pytest.approx(expected, rel=1e-5)
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert norm > 0.5  # so that a clip of 0.25 does something
    update = (before - flat(model)) / 0.5
    assert update.norm().item() == pytest.approx(moved or norm, rel=1e-4)
    torch.testing.assert_close(F.cosine_similarity(update, gradient, dim=0), torch.tensor(1.0), rtol=0, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_a_step_takes_the_learning_rate_that_it_is_given():
    config, model, optimizers = make(clip=0.0, momentum=0.0)
    _, gradient = gradient_of(config, model, 0)
    before = flat(model)
    train_step(model, optimizers, TOKENS_N, config, 0, 0.125, "fp32")
    torch.testing.assert_close(before - flat(model), 0.125 * gradient, rtol=1e-3, atol=1e-6)
