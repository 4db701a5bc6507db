"""The training loop, for one run or for several of one shape at once.

The loop knows what happens in which order. A run (training/run.py) knows what it writes. An engine computes scores and
steps: `Plain` one run after the other, `Stacked` (training/stack.py) all in one batched program.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from errors import Interrupted
from training.config import RunConfig
from training.ddp import ONE_PROCESS, join_processes
from training.evaluate import Score, evaluate
from training.interrupt import Interrupt
from training.run import Run
from training.stack import Stacked, room
from training.step import train_step


class Plain:
    """The engine for a single run, in one process or spread over several (training/ddp.py)."""

    def score(self, runs: Sequence[Run], split: str) -> Sequence[Score]:
        """Return the score of each run on a split of its data, "val" or "test", all of it."""
        scores = []
        for run in runs:
            data = getattr(run.data, split)
            scores.append(evaluate(run.model, data, run.config.micro_batch, run.precision, run.process))
        return scores

    def step(self, runs: Sequence[Run], step: int) -> None:
        """Take one optimiser step (from 0) of each run. `Run.count_step` gets the loss before the update."""
        for run in runs:
            with run.contained():
                started = time.perf_counter()
                tokens_N, lr = run.data.train.tokens_N, run.learning_rate(step)
                loss, norm = train_step(
                    run.model,
                    run.optimizers,
                    tokens_N,
                    run.config,
                    step,
                    lr,
                    run.precision,
                    run.process,
                    run.ddp_model,
                    run.scaler,
                )
                run.count_step(step, loss, norm, time.perf_counter() - started)
                run.probes.follow()


def train_loop(runs: Sequence[Run], engine: Plain | Stacked, interrupt: Interrupt) -> None:
    """Train runs of one shape from where they are to their last step; those that fail drop out.

    A record of step n is written after n updates: step 0 is the network before training. `engine.step(runs, n)` takes
    the update that leads from n to n + 1. The loss of that update waits for the next pass of this loop: there the score
    after the update joins it, in one record of step n + 1.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint, and the same call resumes.
    """
    # Runs of one shape agree in all that is asked of the first one below.
    steps = runs[0].config.steps
    for step in range(min(run.start for run in runs), steps + 1):
        last = step == steps
        # Under torchrun any process may get the signal, and all have to stop at the same step.
        signum = runs[0].process.any_signal(interrupt.signum)
        # A resumed run waits until the others have reached its step.
        active = [run for run in runs if run.start <= step and not run.failed]
        due = [run for run in active if not run.has_record_of(step)]
        scores: Sequence[Score | None] = [None] * len(due)
        if due and due[0].config.is_scored(step):
            scores = engine.score(due, "val")
        for run, score in zip(due, scores, strict=True):
            with run.contained():
                run.record(step, score, stopping=signum > 0)  # metrics, probes, and a checkpoint where one is due
        if last:
            break
        # A run whose record could not be written has failed by now.
        active = [run for run in active if not run.failed]
        if signum:
            for run in active:
                with run.contained():
                    run.interrupt(step, signum)
            raise Interrupted(signum, "stopped; the same command resumes")
        if active:
            for run in active:
                run.probes.keep_before(step + 1)
            engine.step(active, step)

    finished = [run for run in runs if not run.failed]
    # Runs of one shape have one data set, so that all of them have a test split or none.
    has_test = bool(finished) and finished[0].data.test is not None
    tests = engine.score(finished, "test") if has_test else [None] * len(finished)
    for run, test in zip(finished, tests, strict=True):
        with run.contained():
            run.finish(test)


def train(config: RunConfig, folder: Path, patience: float = 0.0) -> dict[str, Any]:
    """Train one run in `folder`, or go on with it, and return its summary (that of `summary.json`).

    `patience` is how long to wait, seconds, for another process that writes there. Under torchrun, all of its processes
    call this and train the run together.

    Raises:
        UserError: the folder or the data do not fit the config.
        Interrupted: a signal came; a checkpoint is written, and the same call resumes.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
    """
    with join_processes(config) as process, Run(config, folder, process) as run:
        run.open(patience)
        if run.summary is None:
            # Under torchrun a process may receive one signal twice: there a second one does not end it at once.
            with Interrupt(insist=process is ONE_PROCESS) as interrupt:
                train_loop([run], Plain(), interrupt)
        assert run.summary is not None
        return run.summary


def train_stack(configs: Mapping[Path, RunConfig], patience: float = 0.0) -> dict[Path, dict[str, Any] | None]:
    """Train runs of one `shape` by their folders, each as `train` would, as many at once as memory holds.

    Returns:
        The summary of each run, None for those that failed: log.txt in their folder says why, and the others go on.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint, and the same call resumes.
    """
    folders, summaries = list(configs), {}
    at_once = room(configs[folders[0]])
    with Interrupt() as interrupt:
        for first in range(0, len(folders), at_once):
            part = folders[first : first + at_once]
            if interrupt.signum:  # it came when the runs before had ended
                raise Interrupted(interrupt.signum, "stopped; the same command resumes")
            with ExitStack() as stack:
                # One run alone is faster in the engine for single runs.
                stacked = len(part) > 1
                runs = [Run(configs[folder], folder, shared=True, stacked=stacked) for folder in part]
                for run in runs:
                    stack.enter_context(run)
                    with run.contained():
                        run.open(patience)
                opened = [run for run in runs if run.summary is None and not run.failed]
                if opened:
                    train_loop(opened, Stacked() if stacked else Plain(), interrupt)
            summaries |= {run.folder: run.summary for run in runs}
    return summaries
