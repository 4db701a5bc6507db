"""The loss taken rows at a time is that of all rows, and so are its gradients."""

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from model import layers, loss
from model.heads import HEADS
from model.loss import head_loss, padded, token_losses
from training.device import autocast

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(loss, "LEAST_ROWS", 4)
    monkeypatch.setattr(loss, "SCORES", 1)


def problem(name, n=10, d=5, v=7):
    """A head, states, embedding and targets; ten rows fall into 4 + 4 + 2."""
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(n, d, generator=generator, dtype=torch.float64).requires_grad_()
    weight_VD = torch.randn(v, d, generator=generator, dtype=torch.float64).requires_grad_()
    return HEADS[name](v).double(), x_ND, weight_VD, torch.randint(v, (n,), generator=generator)


@pytest.mark.parametrize("name", HEADS)
def test_rows_at_a_time_change_neither_loss_nor_gradients(name, few_rows):
    head, x_ND, weight_VD, targets_N = problem(name)
    inputs = (x_ND, weight_VD, *head.parameters())
    expected = head.loss(x_ND @ weight_VD.T, targets_N)
    found = head_loss(head, x_ND, weight_VD, targets_N)
    assert "_Chunked" in type(found.grad_fn).__name__
    torch.testing.assert_close(found, expected)
    # three times the loss: what comes from above must reach every gradient
    gradients = torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_rows_at_a_time_of_a_padded_vocabulary_as_on_a_gpu(name, bf16, few_rows, monkeypatch):
    head, x_ND, weight_VD, targets_N = problem(name)
    head = head.float()
    x_ND, weight_VD = (z.detach().float().requires_grad_() for z in (x_ND, weight_VD))
    found = []
    for scores in (F.linear, lambda x_ND, weight_VD: F.linear(x_ND, *padded(weight_VD))):
        monkeypatch.setattr(loss, "_scores", scores)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = head_loss(head, x_ND, weight_VD, targets_N)
            with torch.no_grad():
                each_N = token_losses(head, x_ND, weight_VD, targets_N)
        found.append([total.detach(), each_N, *torch.autograd.grad(total, [x_ND, weight_VD, *head.parameters()])])
    tolerance = 3e-2 if bf16 else 1e-5
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", HEADS)
def test_a_padded_vocabulary_changes_neither_loss_nor_gradients(name):
    head, x_ND, weight_VD, targets_N = problem(name)
    wide_WD, bias_W = padded(weight_VD)
    z_NW = F.linear(x_ND, wide_WD, bias_W)
    assert z_NW.shape == (10, 64)
    assert z_NW.isfinite().all()  # else the search for what is not would end here
    inputs = (x_ND, weight_VD, *head.parameters())
    losses = head.loss(x_ND @ weight_VD.T, targets_N), head.loss(z_NW, targets_N)
    torch.testing.assert_close(losses[1], losses[0])
    gradients = (torch.autograd.grad(loss, inputs) for loss in losses)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)
    torch.testing.assert_close(head(z_NW).softmax(-1)[:, :7], head(x_ND @ weight_VD.T).softmax(-1))


@GPU
@pytest.mark.parametrize("least", [4, 512])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", HEADS)
def test_on_a_gpu_the_loss_of_an_odd_vocabulary_is_that_on_a_cpu(name, precision, least, monkeypatch):
    monkeypatch.setattr(loss, "GPU_SCORES", 1)
    monkeypatch.setattr(loss, "LEAST_ROWS", least)  # rows at a time, or all at once
    head, x_ND, weight_VD, targets_N = problem(name)
    expected = head_loss(head, x_ND, weight_VD, targets_N)
    gradients = torch.autograd.grad(expected, (x_ND, weight_VD))
    x_ND, weight_VD = (z.detach().float().cuda().requires_grad_() for z in (x_ND, weight_VD))
    with autocast(precision, x_ND.device):
        found = head_loss(head.float().cuda(), x_ND, weight_VD, targets_N.cuda())
    tolerance = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(torch.autograd.grad(found, (x_ND, weight_VD)), gradients, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", HEADS)
def test_scored_rows_at_a_time_each_token_keeps_its_loss(name, few_rows):
    head, x_ND, weight_VD, targets_N = problem(name)
    whole = token_losses(head, x_ND, weight_VD, targets_N)
    with torch.no_grad():
        parts = token_losses(head, x_ND, weight_VD, targets_N)
    torch.testing.assert_close(parts, whole.detach())
    p_NV = head(x_ND @ weight_VD.T).softmax(-1)
    torch.testing.assert_close(whole, -p_NV[torch.arange(10), targets_N].log())


def test_scores_of_all_rows_are_never_there_at_once(few_rows):
    head, x_ND, weight_VD, targets_N = problem("softmax")
    seen = []
    head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    head_loss(head, x_ND, weight_VD, targets_N).backward()
    assert seen == [4, 4, 2]
    with torch.no_grad():  # as the search for a number that is not finite
        head_loss(head, x_ND, weight_VD, targets_N)
    assert seen == [4, 4, 2] * 2


def test_beside_the_gradients_two_tensors_of_a_chunks_scores_are_alive_at_once(monkeypatch):
    monkeypatch.setattr(layers, "MKL_IS_FAST", True)  # oneDNN's gradient by the weights would be there twice
    head, rows, n_vocab = HEADS["softmax"](8192), 512, 8192
    x_ND, targets_N = torch.randn(4 * rows, rows, requires_grad=True), torch.randint(n_vocab, (4 * rows,))
    weight_VD = torch.randn(n_vocab, rows, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        head_loss(head, x_ND, weight_VD, targets_N).backward()
    kineto: Any = profiled.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    most = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert loss._rows(weight_VD) == rows
    # in units of a chunk's scores: two of them, the gradient by the weights, and that by the states, a quarter
    assert 3.25 <= most / (4 * rows * n_vocab) < 3.5
