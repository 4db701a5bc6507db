"""Measurements inside the network, on a fixed batch, outside the training step, which they never change.

All in fp32. B stands for blocks.0, blocks.1, …; P for up, gate or down of the FFN; M for a matrix, such as
blocks.0.attn.qkv.

    stream/B/rms, grad/B/rms          of the residual stream at the block's input, and of its gradient
    grad/depth/first_to_last          that of the first block over that of the last
    grad/depth/scaled_first_to_last   the same of rms(x)·rms(∂L/∂x), which the growth of the stream does not change
    grad/depth/log_slope              of ln rms over depth, per block; above 0, early blocks get less
    grad/depth/up_first_to_last       norm of the gradient of `up` in the first block over that in the last
    grad/B/P, grad/B/P_cosine         norm of the matrix's gradient; cosine with that before the last step
    act/B/u_sd                        sd of u, the pre-activations (of the gate, if there is one)
    act/B/slope, slope_square         E[φ'(u)], E[φ'(u)²]
    act/B/saturated, dead             share of slopes below 5 % of the steepest; of units never above it
    act/B/mean, sd, mean_share        of h, the input of `down`; (E h)²/E[h²] of a unit, averaged
    act/B/lambda_ratio                λmax/mean λ of hᵀh
    act/B/effective_rank              of hᵀh
    ffn/B/mean, sd, mean_share        of the FFN's output
    gate/B/mean, below_0.1, above_0.9 of act(gate)
    sign/B/up_S, sign/B/down_S        majority share of signs in a row of the gradient; S: token, sequence, batch
    sign/B/up_S_pairs, down_S_pairs   probability that two entries of a row agree in sign
    path/B/P_efficiency               ‖θ_T − θ_0‖/Σ‖Δθ_t‖ of the run so far
    path/B/P_cosine                   of successive updates, mean since the measurement before
    update/M/reach                    RMS update / RMS weight of the last step
    update/M/near_eps                 AdamW: share of √v̂ below 10 eps
    head/sum_sigma                    Σ_j σ(z_j) of the scores, the sigmoid head's bias added; mean over tokens
    head/accuracy, head/ece           top-1 accuracy and calibration error of the distribution
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from data.batches import spread_windows
from data.dataset import Split
from model.activations import Gated
from model.gpt import FFN, GPT
from training.evaluate import evaluating
from training.optim import parameters_of
from training.probes.measures import calibration, cosine, hidden_moments, log_slope, rms, same_sign, slopes, spectrum
from training.probes.path import WeightPath, ffn_matrices, ffns

# Of the probe batch, or some more: windows that are spread over the validation split, and so over its documents. A
# measurement of them costs about as much as training on twice as many (benchmarks/probes.py).
TOKENS = 2048
GATES = (-2.0, 2.0, 40)  # the histogram of act(gate): lowest and highest edge, and bins

Seen = dict[str, tuple[Tensor, Tensor]]  # input and output of modules, by name


def probe_steps(steps: int, factor: int) -> set[int]:
    """Return the steps to measure at: the last, that / factor, / factor², … rounded down, and 0; for factor 0 none."""
    found = {steps} if factor else set()
    while factor and steps:
        steps //= factor
        found.add(steps)
    return found


class Probes:
    """The measurements of one run, at log-spaced steps; with factor 0, none. `model` must hold its initial weights."""

    def __init__(self, model: GPT, optimizers: list[Optimizer], split: Split, steps: int, factor: int):
        self.model, self.optimizers, self.steps = model, optimizers, probe_steps(steps, factor)
        self.path = WeightPath(model) if self.steps else None
        self.before: dict[str, Tensor] | None = None  # the weights before the last step, if that step is measured
        x_BT, y_BT = spread_windows(split.tokens_N, model.config.context, TOKENS)
        device = model.embedding.weight.device
        self.x_BT, self.y_BT = x_BT.to(device), y_BT.to(device)

    def keep_before(self, step: int) -> None:
        """Keep the weights before the training step that leads to that step, if that is measured."""
        self.before = snapshot(self.model) if step in self.steps else None

    def follow(self) -> None:
        """Follow the weights by one training step."""
        if self.path:
            self.path.update()

    def measure(self, step: int) -> dict[str, float]:
        """Return the figures of that step, none if it is not one to measure at."""
        if self.path is None or step not in self.steps:
            return {}
        figures = measure(self.model, self.x_BT, self.y_BT, self.optimizers, self.before)
        return figures | self.path.figures() if step else figures

    def summary(self) -> dict[str, Any]:
        """Return what belongs into the run's summary: the histogram of the gates, if there are any."""
        histogram = gate_histogram(self.model, self.x_BT) if self.path else {}
        return {"gate/histogram": histogram} if histogram else {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""
        return self.path.tensors if self.path else {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the tensors of a checkpoint whose weights the model holds by now."""
        if self.path:
            self.path.load(tensors)


@contextmanager
def watch(modules: Mapping[str, nn.Module]) -> Iterator[Seen]:
    """Keep the input and output of each module's last call inside; the hooks are gone on exit."""
    seen: Seen = {}

    def hook(name: str) -> Any:
        return lambda _module, inputs, output: seen.update({name: (inputs[0], output)})

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def swapped_weights(model: nn.Module, others: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model other weights inside. Its own come back bit for bit, since nothing is written to them."""
    own = {name: parameter.data for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.data = others[name]
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = own[name]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def measure(
    model: GPT, x_BT: Tensor, y_BT: Tensor, optimizers: list[Optimizer], before: Mapping[str, Tensor] | None
) -> dict[str, float]:
    """Return every figure of the model as it stands; `before` holds the weights before the last step, if there was one.

    No hook, gradient or random number is left behind or used up.
    """
    # In fp32, whatever training uses, so that runs in different precisions compare.
    with evaluating(model), torch.autocast(x_BT.device.type, enabled=False):
        figures, gradients = _forward_and_backward(model, x_BT, y_BT)
        if before is not None:
            matrices = ffn_matrices(model)
            # The backward pass is inside too, since it may compute parts of the loss anew.
            with swapped_weights(model, before):
                loss = model(x_BT, y_BT, per_token=True).mean()
                earlier = torch.autograd.grad(loss, list(matrices.values()))
            for name, gradient in zip(matrices, earlier, strict=True):
                figures[f"grad/{name}_cosine"] = cosine(gradients[name], gradient)
            figures |= _reach(model, before) | _near_eps(model, optimizers)
    return {name: float(value) for name, value in figures.items()}


def gate_histogram(model: GPT, x_BT: Tensor) -> dict[str, dict[str, list[float]]]:
    """Return the distribution of act(gate) of each block, as `edges` and `counts`; empty for ungated activations.

    Values beyond the edges count in the outermost bins.
    """
    acts = {where: ffn.act.act for where, ffn in ffns(model).items() if isinstance(ffn.act, Gated)}
    with torch.no_grad(), evaluating(model), torch.autocast(x_BT.device.type, enabled=False), watch(acts) as seen:
        model(x_BT)
    low, high, bins = GATES
    edges = torch.linspace(low, high, bins + 1).tolist()
    histogram = {}
    for where, (_, gate_BTF) in seen.items():
        counts = torch.histc(gate_BTF.clamp(low, high), bins, low, high)
        histogram[where] = {"edges": edges, "counts": counts.tolist()}
    return histogram


def function_of(ffn: FFN) -> nn.Module:
    """Return the pointwise function of an FFN: its activation, or that of the gate where it is gated."""
    return ffn.act.act if isinstance(ffn.act, Gated) else ffn.act


def _forward_and_backward(model: GPT, x_BT: Tensor, y_BT: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the figures of the blocks and of the head, and the gradients of the FFN matrices."""
    blocks = ffns(model)
    modules: dict[str, nn.Module] = dict(zip(blocks, model.blocks, strict=True))
    modules["norm"] = model.norm  # its output is what the head reads
    for where, ffn in blocks.items():
        modules |= {f"{where}/up": ffn.up, f"{where}/act": function_of(ffn), f"{where}/down": ffn.down}
    with watch(modules) as seen:
        loss = model(x_BT, y_BT, per_token=True).mean()

    # All gradients come from one backward pass: of the stream where it enters each block, of the outputs of `up` and
    # `down`, and of the FFN matrices.
    of = {where: seen[where][0] for where in blocks}
    for where in blocks:
        of |= {f"{where}/{part}.output": seen[f"{where}/{part}"][1] for part in ("up", "down")}
    of |= ffn_matrices(model)
    gradients = dict(zip(of, torch.autograd.grad(loss, list(of.values())), strict=True))

    figures: dict[str, Any] = {}
    with torch.no_grad():
        sizes = {where: rms(of[where]).item() for where in blocks}
        norms = {where: rms(gradients[where]).item() for where in blocks}
        figures |= _depth(sizes, norms)
        figures |= {f"grad/{name}": gradients[name].norm() for name in ffn_matrices(model)}
        up = [figures[f"grad/{where}/up"] for where in blocks]
        figures["grad/depth/up_first_to_last"] = up[0] / up[-1]  # nan where no gradient reaches either
        for where, ffn in blocks.items():
            figures |= _activation(where, ffn, seen) | _signs(where, seen, gradients)
        figures |= _head(model, seen["norm"][1], y_BT)
    return figures, gradients


def _depth(sizes: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    """Return how the stream and its gradient change with depth; `sizes` and `norms` are RMS by block."""
    figures = {f"stream/{where}/rms": size for where, size in sizes.items()}
    figures |= {f"grad/{where}/rms": norm for where, norm in norms.items()}
    blocks, nan = list(norms), float("nan")
    first, last = blocks[0], blocks[-1]
    ratio = norms[first] / norms[last] if norms[last] else nan
    figures["grad/depth/first_to_last"] = ratio
    figures["grad/depth/scaled_first_to_last"] = ratio * (sizes[first] / sizes[last] if sizes[last] else nan)
    figures["grad/depth/log_slope"] = log_slope(list(norms.values()))
    return figures


def _activation(where: str, ffn: FFN, seen: Seen) -> dict[str, Tensor]:
    """Return the figures of a block's activation, its FFN's output and its gate."""
    u_NF, act_NF = (side.flatten(0, 1) for side in seen[f"{where}/act"])
    h_NF, y_ND = (side.flatten(0, 1) for side in seen[f"{where}/down"])
    act = {"u_sd": u_NF.std(correction=0)} | slopes(function_of(ffn), u_NF) | hidden_moments(h_NF) | spectrum(h_NF)
    figures = {f"act/{where}/{name}": value for name, value in act.items()}
    figures |= {f"ffn/{where}/{name}": value for name, value in hidden_moments(y_ND).items()}
    if ffn.gate is not None:
        figures[f"gate/{where}/mean"] = act_NF.mean()
        figures[f"gate/{where}/below_0.1"] = (act_NF < 0.1).float().mean()
        figures[f"gate/{where}/above_0.9"] = (act_NF > 0.9).float().mean()
    return figures


def _signs(where: str, seen: Seen, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return how far the entries of a row of the gradients of `up` and `down` share their sign."""
    figures = {}
    for part in ("up", "down"):
        input_BTF, delta_BTD = seen[f"{where}/{part}"][0], gradients[f"{where}/{part}.output"]
        rows = {
            # The gradient of a single token is δ hᵀ. All its rows are ±h, which share as many signs.
            "token": input_BTF.flatten(0, 1),
            "sequence": delta_BTD[0].mT @ input_BTF[0],
            "batch": gradients[f"{where}/{part}"],
        }
        for size, gradient_RF in rows.items():
            name = f"sign/{where}/{part}_{size}"
            figures[name], figures[f"{name}_pairs"] = same_sign(gradient_RF)
    return figures


def _head(model: GPT, x_BTD: Tensor, y_BT: Tensor) -> dict[str, Tensor]:
    """Return the figures of the head; `x_BTD` is what the last norm returns."""
    z_BTV = model.scores(x_BTD)
    figures = {"head/sum_sigma": (z_BTV + getattr(model.head, "bias", 0.0)).sigmoid().sum(-1).mean()}
    for name, value in calibration(model.head(z_BTV).flatten(0, 1), y_BT.flatten()).items():
        figures[f"head/{name}"] = value
    return figures


@torch.no_grad()
def _reach(model: GPT, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return RMS update / RMS weight of each matrix."""
    figures = {}
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            rows = used_rows(model, name, weight)
            update = weight[:rows] - before[name][:rows]
            figures[f"update/{name.removesuffix('.weight')}/reach"] = rms(update) / rms(before[name][:rows])
    return figures


def used_rows(model: GPT, name: str, weight: Tensor) -> int:
    """Return how many rows of a matrix the model reads: all, without those that pad the vocabulary."""
    return model.n_vocab if name == "embedding.weight" else len(weight)


def _near_eps(model: GPT, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Return the share of each matrix whose Adam denominator √v̂ is below 10 eps; nothing for other optimisers."""
    figures = {}
    for optimizer in optimizers:
        if not isinstance(optimizer, AdamW):
            continue
        group = optimizer.param_groups[0]  # of the matrices; the other one has the same betas and eps
        for name, p in parameters_of(model, optimizer).items():
            if p.ndim >= 2 and (state := optimizer.state.get(p)):
                square = state["exp_avg_sq"][: used_rows(model, name, p)]
                root = (square / (1 - group["betas"][1] ** state["step"])).sqrt()
                near = (root < 10 * group["eps"]).float().mean()
                figures[f"update/{name.removesuffix('.weight')}/near_eps"] = near
    return figures
