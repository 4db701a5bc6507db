"""Many runs of one shape in one process, in step: what they ask for at the same time is computed together."""

import dataclasses
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from data.dataset import prepare
from errors import Interrupted, UserError
from training.config import RunConfig, WandbConfig
from training.device import pick_device
from training.evaluate import score
from training.folder import read_summary
from training.interrupt import Interrupt
from training.loop import Call, Run, begin
from training.probes.probes import Probes
from training.stacked import Stack, room
from training.step import train_step

STOPPED = "stopped; the same command resumes it"


def train_together(runs: Mapping[Path, RunConfig], patience: float = 0.0) -> dict[Path, dict[str, Any] | None]:
    """Train runs of one `shape` by their folders, each as `training.loop.train` would, as many at once as memory holds.

    Returns:
        The summary of each run, None of those that failed: log.txt in their folder says why, and the others go on.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint, and the same call resumes.
    """
    config, folders = next(iter(runs.values())), list(runs)
    at_once = room(config, prepare(config.data).tokenizer.n_vocab, pick_device(config.train.device))
    summaries: dict[Path, dict[str, Any] | None] = {}
    with Interrupt() as interrupt:
        for start in range(0, len(folders), at_once):
            if interrupt.signum:  # it came when the runs before had ended
                raise Interrupted(interrupt.signum, STOPPED)
            part = {folder: runs[folder] for folder in folders[start : start + at_once]}
            summaries |= _train(part, patience, interrupt)
    return summaries


def shape(config: RunConfig) -> RunConfig:
    """Return what is equal for runs that can be stacked: all but seed, learning rate, and how the record is kept."""
    train = dataclasses.replace(config.train, seed=0, lr=1.0, keep=1)
    return dataclasses.replace(config, train=train, wandb=WandbConfig())


class _Member:
    """A run between two calls; `call` is what it waits for, None once it has ended.

    What it prints goes to log.txt of its folder, and its random state is its own.
    """

    def __init__(self, run: Run, folder: Path):
        self.run = run
        self.call: Call | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "log.txt").open("a", encoding="utf-8", buffering=1)
        self.random = torch.get_rng_state()
        self.summary: dict[str, Any] | None = None
        self.stopped = False

    def go_on(self, answer: Any = None) -> None:
        """Give the run its answer, or raise it if it is an exception, and wait for its next call."""
        self.call = None
        torch.set_rng_state(self.random)
        with redirect_stdout(self.log), redirect_stderr(self.log):
            try:
                self.call = self.run.throw(answer) if isinstance(answer, Exception) else self.run.send(answer)
            except StopIteration as end:
                self.summary = end.value
            except (UserError, FloatingPointError, Interrupted) as error:
                self.stopped = isinstance(error, Interrupted)
                print(error)
            except Exception:
                traceback.print_exc()
        self.random = torch.get_rng_state()


def _train(runs: Mapping[Path, RunConfig], patience: float, interrupt: Interrupt) -> dict[Path, dict[str, Any] | None]:
    seen = Interrupt()  # what all runs look at: it changes between two rounds, so that they stop at one step
    stack, stacked = None, []
    with ExitStack() as logs:
        together = sum(not read_summary(folder) for folder in runs) > 1
        begun = {folder: begin(config, folder, patience, seen, together) for folder, config in runs.items()}
        members = {folder: _Member(run, folder) for folder, run in begun.items()}
        for member in members.values():
            logs.callback(member.log.close)
            member.go_on()
        while due := _due([member for member in members.values() if member.call]):
            calls = [member.call for member in due if member.call]
            began = time.perf_counter()
            try:
                if len(due) > 1 and due != stacked and calls[0].function in (score, train_step):
                    stack, stacked = Stack([call.arguments[0] for call in calls], next(iter(runs.values()))), due
                answers = _answers(stack if due == stacked else None, calls)
            except Exception as error:
                answers = [error] * len(due)
            seconds = time.perf_counter() - began
            for member, answer in zip(due, answers, strict=True):
                member.go_on(answer if isinstance(answer, Exception) else (answer, seconds))
            seen.signum = interrupt.signum
    if any(member.stopped for member in members.values()):
        raise Interrupted(seen.signum, STOPPED)
    return {folder: member.summary for folder, member in members.items()}


def _due(waiting: list[_Member]) -> list[_Member]:
    """Return the runs to go on with: those furthest behind, and of them those that ask for the same."""
    asked = {member: (member.call.step, member.call.function) for member in waiting if member.call}
    first = min(asked.values(), key=lambda pair: pair[0], default=None)
    return [member for member in waiting if asked[member] == first]


def _answers(stack: Stack | None, calls: Sequence[Call]) -> list[Any]:
    """Return the answer to each of these calls, which ask for the same at the same step; of no stack, one by one."""
    if stack is None:
        return [call.function(*call.arguments) for call in calls]
    if calls[0].function is score:
        _, split, _, precision, _ = calls[0].arguments
        return stack.score(split, precision)
    if calls[0].function is Probes.follow:
        stack.follow([probes for call in calls for probes in call.arguments])
        return [None] * len(calls)
    assert calls[0].function is train_step
    _, optimizers, tokens, configs, steps, lrs, precisions, _ = zip(*(call.arguments for call in calls), strict=True)
    return stack.step(optimizers, tokens, configs, steps[0], lrs, precisions[0])
