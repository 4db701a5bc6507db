"""Runs of one shape as one batched program: small runs leave a GPU waiting for its next kernel, and R share each one.

R runs, N weights of a run; further legend in model/gpt.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from data.dataset import Split
from model.gpt import GPT
from model.size import size
from training.config import RunConfig
from training.device import autocast, free_memory, moved
from training.evaluate import Score, evaluating, from_nats, window_nats
from training.nonfinite import began
from training.probes.path import sample, update_together
from training.probes.probes import Probes
from training.stacked_optim import segments
from training.step import micro_batches, not_finite


class Stack:
    """R models whose weights lie side by side, a row of `weights_RN` each, and their training step.

    Each model keeps its weights as views, and the runs' own optimisers what they remember. So all else in a run
    (probes, checkpoints, samples) goes on with its plain GPT. The runs differ in seed and learning rate alone; what an
    activation holds beside parameters and buffers is taken from the first.
    """

    def __init__(self, models: Sequence[GPT], config: RunConfig):
        self.models, self.config = list(models), config
        self.device = models[0].embedding.weight.device
        self.objective = _Objective(models[0])
        self.segments = segments(models[0], config.train)
        width = sum(segment.width for segment in self.segments)
        self.weights_RN = torch.empty(len(models), width, device=self.device)
        self.begun = False
        self.tensors: dict[str, Tensor] = {}  # all that the batched program reads, (R, *shape)
        for name, rows in self._named(self.weights_RN).items():
            self._move(name, rows)
            self.tensors[name] = rows.detach().requires_grad_()
        self.trained = list(self.tensors.values())
        for name, tensor in [*models[0].named_parameters(), *models[0].named_buffers()]:
            if name not in self.tensors:
                self.tensors[name] = tensor.new_empty(len(models), *tensor.shape)
                self._move(name, self.tensors[name])

    def _named(self, rows_RN: Tensor) -> dict[str, Tensor]:
        """Return what belongs to each trained parameter, (R, *shape)."""
        pairs = zip(self.segments, self._split(rows_RN), strict=True)
        return {name: part for segment, columns in pairs for name, part in segment.columns(columns).items()}

    def _split(self, rows_RN: Tensor) -> Sequence[Tensor]:
        return rows_RN.split([segment.width for segment in self.segments], dim=1)

    def _move(self, name: str, rows: Tensor) -> None:
        """Put a parameter or buffer of every model into the stack; the models keep views of it."""
        for model, row in zip(self.models, rows.detach(), strict=True):
            part, _, leaf = name.rpartition(".")
            own: Tensor = getattr(model.get_submodule(part), leaf)
            row.copy_(own.detach())
            own.data = row

    def score(self, split: Split, precision: str) -> list[Score]:
        """Score a split with every model, as `training.evaluate.score`."""
        c, context = self.config.train, self.config.model.context

        def nats(x_BT: Tensor, y_BT: Tensor) -> Tensor:
            return self._batched(precision, x_BT, y_BT, scored=True)

        with evaluating(self.objective):
            windows_RN = window_nats(nats, split, context, c.batch_size // c.accumulate, self.device)
        return [from_nats(windows_N, split, context) for windows_N in windows_RN]

    def step(
        self,
        optimizers: Sequence[list[Optimizer]],
        tokens: Sequence[np.ndarray],
        configs: Sequence[RunConfig],
        at: int,
        lrs: Sequence[float],
        precision: str,
    ) -> list[tuple[float, float] | FloatingPointError]:
        """Take that step of every run, as `training.step.train_step`; return what it returns, or raises, for each."""
        c = self.config.train
        if not self.begun:
            self._take(optimizers)
        parts = zip(tokens, configs, strict=True)
        batches = [micro_batches(tokens_N, config, at, torch.device("cpu")) for tokens_N, config in parts]
        total_R = torch.zeros(len(self.models), device=self.device)
        grads_RN = torch.zeros_like(self.weights_RN)
        for micro in zip(*batches, strict=True):
            x_RBT, y_RBT = (moved(torch.stack(side), self.device) for side in zip(*micro, strict=True))
            micro_R = self._batched(precision, x_RBT, y_RBT) / c.accumulate
            grads = torch.autograd.grad(micro_R.sum(), self.trained, materialize_grads=True)
            grads_RN += torch.cat([grad.reshape(len(grad), -1) for grad in grads], dim=1)
            total_R += micro_R.detach()
        norm_R = torch.linalg.vector_norm(grads_RN, dim=1)
        figures = torch.stack([total_R, norm_R], dim=1).tolist()  # the one wait for a GPU
        bad = [r for r, pair in enumerate(figures) if not math.isfinite(sum(pair))]
        answers: list[Any] = [tuple(pair) for pair in figures]
        for r in bad if c.nonfinite == "stop" else ():
            loss, norm = figures[r]
            answers[r] = not_finite(at, loss, norm, self._began(r, grads_RN, batches[r], precision))
        self._update(grads_RN, norm_R, torch.tensor(lrs, device=self.device), bad)
        return answers

    def follow(self, probes: Sequence[Probes]) -> None:
        """Follow the weights of every run by one training step, as `Probes.follow`."""
        paths = [probe.path for probe in probes if probe.path]
        if paths:
            names = [f"{name.replace('/', '.ffn.')}.weight" for name in paths[0].matrices]
            update_together(paths, sample(self.tensors[name] for name in names))

    @torch.no_grad()
    def _update(self, grads_RN: Tensor, norm_R: Tensor, lr_R: Tensor, bad: list[int]) -> None:
        """Clip each run's gradient and update its weights; the runs in `bad` stay as they are."""
        held = [self.weights_RN, *(slot for segment in self.segments for slot in segment.slots.values())]
        kept = [(tensor, tensor[bad]) for tensor in held if bad]
        if self.config.train.clip:
            grads_RN *= (self.config.train.clip / (norm_R + 1e-6)).clamp(max=1)[:, None]
        parts = zip(self.segments, self._split(self.weights_RN), self._split(grads_RN), strict=True)
        for segment, w_RN, g_RN in parts:
            segment.update(w_RN, g_RN, lr_R[:, None])
        for tensor, rows in kept:
            tensor[bad] = rows

    def _take(self, optimizers: Sequence[list[Optimizer]]) -> None:
        """Take over what the optimisers of the runs remember."""
        self.begun = True
        states = []
        for model, own in zip(self.models, optimizers, strict=True):
            owner = {id(p): o for o in own for group in o.param_groups for p in group["params"]}
            states.append({n: owner[id(p)].state[p] for n, p in model.named_parameters() if id(p) in owner})
        for segment, w_RN in zip(self.segments, self._split(self.weights_RN), strict=True):
            segment.take(states, w_RN)

    def _batched(self, precision: str, x: Tensor, y: Tensor, scored: bool = False) -> Tensor:
        """Return the training loss of every model on its own x_RBT, y_RBT, or, `scored`, RBT of all on one x_BT."""

        def loss(tensors: dict[str, Tensor], x_BT: Tensor, y_BT: Tensor) -> Tensor:
            own = {f"model.{name}": tensor for name, tensor in tensors.items()}
            return functional_call(self.objective, own, (x_BT, y_BT, scored))

        side = None if scored else 0
        with autocast(precision, self.device), sdpa_kernel(SDPBackend.MATH):  # the fused ones cannot be batched
            return vmap(loss, (0, side, side), randomness="different")(self.tensors, x, y)

    def _began(self, r: int, grads_RN: Tensor, batches: list[tuple[Tensor, Tensor]], precision: str) -> str:
        """Return where a number that is not finite began in a run."""
        for name, grads in self._named(grads_RN).items():
            self.models[r].get_parameter(name).grad = grads[r]
        where = began(self.models[r], [(x.to(self.device), y.to(self.device)) for x, y in batches], precision)
        self.models[r].zero_grad()
        return where


class _Objective(nn.Module):
    """The losses of a model as a module, which is what `functional_call` calls."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, x_BT: Tensor, y_BT: Tensor, scored: bool) -> Tensor:
        """Return the training loss, or the cross-entropy of each token."""
        return self.model.token_losses(x_BT, y_BT) if scored else self.model.train_loss(x_BT, y_BT)


def room(config: RunConfig, n_vocab: int, device: torch.device) -> int:
    """Return how many runs of that shape to stack on a device: as many as half of its free memory holds, one or more.

    A run is counted as eight times its weights (gradients, AdamW's two means, the path, what an update needs in
    between) and what the backward pass keeps of a micro-batch, all in fp32.
    """
    m, c = config.model, config.train
    kept = m.n_layer * (32 * m.d_model + 3 * m.n_head * m.context) + 4 * n_vocab  # numbers of a token
    tokens = c.batch_size // c.accumulate * m.context
    return max(1, int(free_memory(device) / 2 / 4 / (8 * size(m, n_vocab).total + tokens * kept)))
