"""The engine for many small runs on a GPU: runs of one shape as one batched program.

A small run alone leaves a GPU waiting for its next kernel. R runs that differ in seed and learning rate share each one.

R runs, N weights of a run; further legend in model/gpt.py.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.dataset import Split, prepare
from model.size import size
from training.config import RunConfig, WandbConfig
from training.device import autocast, free_memory, pick_device, to_device
from training.evaluate import Score, evaluating, from_nats, window_nats
from training.nonfinite import first_nonfinite
from training.optim import parameters_of
from training.probes.path import followed_weights, update_together
from training.run import Run
from training.stack_optim import segments
from training.step import nonfinite_error, split_batch


def shape(config: RunConfig) -> RunConfig:
    """Return what is equal for runs that can be stacked: all but seed, learning rate, and how the record is kept.

    Runs that hold out other documents are not stacked: they are scored on other text, and their tokenizers differ.
    """
    train = dataclasses.replace(config.train, seed=0, lr=1.0, keep=1)
    data = config.data.of_run(config.train.seed)
    return dataclasses.replace(config, data=data, train=train, wandb=WandbConfig())


def room(config: RunConfig) -> int:
    """Return how many runs of that shape to stack: as many as half of the device's free memory holds, one or more.

    A run is counted in fp32, as eight times its weights and what the backward pass keeps of a micro-batch. The eight
    are the weights, gradients, AdamW's two means, the path of the probes, and what an update needs in between.
    """
    m, c = config.model, config.train
    n_vocab = prepare(config.data, c.seed).tokenizer.n_vocab
    per_token = m.n_layer * (32 * m.d_model + 3 * m.n_head * m.context) + 4 * n_vocab
    tokens = config.micro_batch * m.context
    numbers = 8 * size(m, n_vocab).total + tokens * per_token
    return max(1, int(free_memory(pick_device(c.device)) / 2 / 4 / numbers))


class Stacked:
    """The engine that computes scores and steps of all runs together, in the place of `Plain` (training/loop.py).

    Whenever the runs are others than before, since one has failed or caught up, their weights are stacked anew.
    """

    def __init__(self):
        self.stack: Stack | None = None

    def _stack(self, runs: Sequence[Run]) -> "Stack":
        if self.stack is None or self.stack.runs != list(runs):
            self.stack = Stack(runs)
        return self.stack

    def score(self, runs: Sequence[Run], split: str) -> Sequence[Score]:
        """See `Plain`. All runs of one shape have the same data."""
        return self._stack(runs).score(getattr(runs[0].data, split))

    def step(self, runs: Sequence[Run], step: int) -> None:
        """See `Plain`."""
        stack = self._stack(runs)
        started = time.perf_counter()
        figures = stack.step(step)
        seconds = time.perf_counter() - started  # without the probes, as for a single run
        stack.follow_paths()
        for run, figure in zip(runs, figures, strict=True):
            with run.contained():
                if isinstance(figure, FloatingPointError):
                    raise figure
                run.count_step(step, *figure, seconds)


class Stack:
    """R models whose weights lie side by side, a row of `weights_RN` each, and their training step.

    Each model keeps its weights as views, and the runs' own optimisers what they remember. So all else in a run
    (probes, checkpoints, samples) goes on with its plain GPT. What an activation holds beside parameters and buffers is
    taken from the first model.
    """

    def __init__(self, runs: Sequence[Run]):
        self.runs = list(runs)
        self.models = [run.model for run in runs]
        self.config, self.precision, self.device = runs[0].config, runs[0].precision, runs[0].device
        # The batched program is the forward pass of the first model, with the weights of all. The backward pass is
        # outside of it, so that no part of the loss can be computed anew there.
        self.template = self.models[0]
        self.template.loss_in_parts = False
        self.segments = segments(self.template, self.config.train)
        width = sum(segment.width for segment in self.segments)
        self.weights_RN = torch.empty(len(runs), width, device=self.device)
        self.tensors: dict[str, Tensor] = {}  # all that the batched program reads, (R, *shape)
        for name, rows in self._by_parameter(self.weights_RN).items():
            self._move(name, rows)
            self.tensors[name] = rows.detach().requires_grad_()
        self.trained = list(self.tensors.values())
        for name, tensor in [*self.template.named_parameters(), *self.template.named_buffers()]:
            if name not in self.tensors:
                self.tensors[name] = tensor.new_empty(len(runs), *tensor.shape)
                self._move(name, self.tensors[name])
        # What the runs' own optimisers remember moves into the stack as their weights did.
        states = []
        for run in runs:
            state_by_name = {}
            for optimizer in run.optimizers:
                named = parameters_of(run.model, optimizer)
                state_by_name |= {name: optimizer.state[parameter] for name, parameter in named.items()}
            states.append(state_by_name)
        for segment, w_RN in zip(self.segments, self._columns(self.weights_RN), strict=True):
            segment.stack_state(states, w_RN)

    def _columns(self, rows_RN: Tensor) -> Sequence[Tensor]:
        """Return the columns of each segment."""
        return rows_RN.split([segment.width for segment in self.segments], dim=1)

    def _by_parameter(self, rows_RN: Tensor) -> dict[str, Tensor]:
        """Return what belongs to each trained parameter, (R, *shape)."""
        parts: dict[str, Tensor] = {}
        for segment, columns in zip(self.segments, self._columns(rows_RN), strict=True):
            parts |= segment.by_parameter(columns)
        return parts

    def _move(self, name: str, rows: Tensor) -> None:
        """Put a parameter or buffer of every model into the stack; the models keep views of it."""
        module, _, leaf = name.rpartition(".")
        for model, row in zip(self.models, rows.detach(), strict=True):
            own: Tensor = getattr(model.get_submodule(module), leaf)
            row.copy_(own.detach())
            # The parameter itself stays, since optimisers and checkpoints know it by its identity.
            own.data = row

    def score(self, split: Split) -> list[Score]:
        """Score a split with every model, as `training.evaluate.evaluate` does."""
        context = self.config.model.context

        def losses(x_BT: Tensor, y_BT: Tensor) -> Tensor:
            return self._forward(x_BT, y_BT, per_token=True)

        with evaluating(self.template):
            nats_RN = window_nats(losses, split, context, self.config.micro_batch, self.device)
        return [from_nats(nats_N, split, context) for nats_N in nats_RN]

    def step(self, step: int) -> list[tuple[float, float] | FloatingPointError]:
        """Take that step of every run, as `training.step.train_step`; return what it returns, or raises, for each."""
        c = self.config.train
        # The batches of all runs go to the GPU as one copy.
        cpu = torch.device("cpu")
        batches = [split_batch(run.data.train.tokens_N, run.config, step, cpu) for run in self.runs]
        loss_R = torch.zeros(len(self.runs), device=self.device)
        grads_RN = torch.zeros_like(self.weights_RN)
        for micro_batches in zip(*batches, strict=True):
            x_RBT = to_device(torch.stack([x_BT for x_BT, _ in micro_batches]), self.device)
            y_RBT = to_device(torch.stack([y_BT for _, y_BT in micro_batches]), self.device)
            micro_R = self._forward(x_RBT, y_RBT) / c.accumulate
            # A parameter that no formula reads gets zeros.
            grads = torch.autograd.grad(micro_R.sum(), self.trained, materialize_grads=True)
            grads_RN += torch.cat([grad.reshape(len(grad), -1) for grad in grads], dim=1)
            loss_R += micro_R.detach()
        norm_R = torch.linalg.vector_norm(grads_RN, dim=1)
        figures = torch.stack([loss_R, norm_R], dim=1).tolist()  # the one wait for a GPU
        bad = [r for r, pair in enumerate(figures) if not math.isfinite(sum(pair))]
        results: list[tuple[float, float] | FloatingPointError] = [(loss, norm) for loss, norm in figures]
        if c.nonfinite == "stop":
            for r in bad:
                where = self._first_nonfinite(r, grads_RN, batches[r])
                results[r] = nonfinite_error(step, figures[r][0], figures[r][1], where)
        lr_R = torch.tensor([run.learning_rate(step) for run in self.runs], device=self.device)
        self._update(grads_RN, norm_R, lr_R, bad)
        return results

    def follow_paths(self) -> None:
        """Follow the weights of every run by one training step, as `Probes.follow`."""
        paths = [run.probes.path for run in self.runs if run.probes.path]
        if paths:
            names = [f"{name.replace('/', '.ffn.')}.weight" for name in paths[0].matrices]
            update_together(paths, followed_weights(self.tensors[name] for name in names))

    @torch.no_grad()
    def _update(self, grads_RN: Tensor, norm_R: Tensor, lr_R: Tensor, bad: list[int]) -> None:
        """Clip each run's gradient and update its weights; the runs in `bad` stay as they are."""
        changed = [self.weights_RN, *(slot for segment in self.segments for slot in segment.slots.values())]
        # One operation updates all runs, so the bad ones are put back rather than left out.
        before = [tensor[bad] for tensor in changed] if bad else []
        if self.config.train.clip:
            # As torch's clip_grads_with_norm_, its 1e-6 included.
            grads_RN *= (self.config.train.clip / (norm_R + 1e-6)).clamp(max=1)[:, None]
        columns = zip(self.segments, self._columns(self.weights_RN), self._columns(grads_RN), strict=True)
        for segment, w_RN, g_RN in columns:
            segment.update(w_RN, g_RN, lr_R[:, None])
        if bad:
            for tensor, rows in zip(changed, before, strict=True):
                tensor[bad] = rows

    def _forward(self, x: Tensor, y: Tensor, per_token: bool = False) -> Tensor:
        """Return the training loss of every model on its own x_RBT, R; or per token, RBT, of all on one x_BT."""

        def loss(tensors: dict[str, Tensor], x_BT: Tensor, y_BT: Tensor) -> Tensor:
            return functional_call(self.template, tensors, (x_BT, y_BT), {"per_token": per_token})

        batch_dim = None if per_token else 0
        # vmap knows no rule for the fused attention kernels.
        with autocast(self.precision, self.device), sdpa_kernel(SDPBackend.MATH):
            return vmap(loss, (0, batch_dim, batch_dim), randomness="different")(self.tensors, x, y)

    def _first_nonfinite(self, r: int, grads_RN: Tensor, micro_batches: list[tuple[Tensor, Tensor]]) -> str:
        for name, grads in self._by_parameter(grads_RN).items():
            self.models[r].get_parameter(name).grad = grads[r]
        on_device = [(x_BT.to(self.device), y_BT.to(self.device)) for x_BT, y_BT in micro_batches]
        where = first_nonfinite(self.models[r], on_device, self.precision)
        self.models[r].zero_grad()
        return where
