"""One run, from a config to a folder with its metrics, checkpoints and summary."""

import io
import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.corpus import check_corpus
from data.dataset import Dataset, prepare
from errors import Interrupted, UserError
from model.gpt import GPT
from training import checkpoint
from training.clock import Clock
from training.config import RunConfig, build, differences, tree
from training.device import check_compiler, environment, keep_memory, pick_device, pick_precision
from training.evaluate import score
from training.folder import open_run, read_summary, write_whole
from training.interrupt import Interrupt
from training.metrics import Metrics, Unwritten
from training.optim import build_optimizers, lr_factor
from training.parallel import ALONE, Alone, pick_parallel
from training.probes.probes import Probes
from training.progress import Display
from training.ranks import joined
from training.resume import resume
from training.sample import load_run
from training.step import compile_loss, train_step
from training.summary import sample_of, summary_of
from training.wandb_mirror import WandbMirror

CPU = torch.device("cpu")


class Call(NamedTuple):
    """What a run asks for: alone it is `function(*arguments)`; runs of one shape can be answered together."""

    step: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


Run = Generator[Call, tuple[Any, float], dict[str, Any]]  # is sent each result, and the seconds that it took


def train(config: RunConfig, folder: Path, patience: float = 0.0) -> dict[str, Any]:
    """Train one run in `folder`, or go on with it, and return its summary (that of `summary.json`).

    `patience` is how long to wait, seconds, for another process that writes there. Under torchrun, all of its processes
    call this and train the run together.

    Raises:
        UserError: the folder or the data do not fit the config.
        Interrupted: a signal came; a checkpoint is written, and the same call resumes.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
    """
    run = begin(config, folder, patience)
    try:
        call = next(run)
        while True:
            began = time.perf_counter()
            try:
                result = call.function(*call.arguments)
            except BaseException as error:
                call = run.throw(error)
            else:
                call = run.send((result, time.perf_counter() - began))
    except StopIteration as end:
        return end.value


def begin(
    config: RunConfig, folder: Path, patience: float = 0.0, interrupt: Interrupt | None = None, stacked: bool = False
) -> Run:
    """Return a run as `train`, which asks for its scores and its training steps instead of computing them.

    `interrupt` is given where several runs share one; `stacked` says that their steps are to be computed together.
    """
    with joined(config) as ranks, ExitStack() as held:
        if not read_summary(folder):
            check_available(config)
        if finished := ranks.first(lambda: held.enter_context(open_run(folder, config, patience))):
            return finished
        data = prepare(config.data)
        check_context(config, data)
        check_alike(config, data, ranks)
        with nullcontext(interrupt) if interrupt else Interrupt(insist=ranks is ALONE) as seen:
            device = pick_device(config.train.device)
            return (yield from _run(config, folder, data, device, seen, ranks, stacked))


def check_available(config: RunConfig) -> None:
    """Raise `UserError` for a corpus, device or ranks that cannot be, before a folder is made or a corpus fetched."""
    check_corpus(config.data)
    pick_device(config.train.device)
    pick_parallel(config)
    if config.train.compile:
        check_compiler()


def check_context(config: RunConfig, data: Dataset) -> None:
    """Raise `UserError` if the training split does not fill one context."""
    if len(data.train.tokens_N) <= config.model.context:
        most = config.data.max_tokens
        limited = f" under data.max_tokens = {most}" if most else ""
        raise UserError(
            f"model.context = {config.model.context} is longer than the training split of {config.data.corpus}"
            f"{limited}, {len(data.train.tokens_N)} tokens."
        )


def check_alike(config: RunConfig, data: Dataset, ranks: Alone) -> None:
    """Raise `UserError` on a rank whose config, tokens or precision are not the first's: each host has its own."""
    mine = pick_precision(config.train.precision, pick_device(config.train.device))
    theirs, fingerprint, precision = ranks.first(lambda: [tree(config), data.fingerprint, mine])
    if lines := differences(build(theirs, "the first rank's config"), config):
        raise UserError("\n  ".join(["a rank has another config than the first:", *lines]))
    if fingerprint != data.fingerprint:
        raise UserError(f"a rank has other tokens than the first: is {config.data.corpus} equal on all hosts?")
    if mine != precision:
        raise UserError(f"a rank would train in {mine}, the first in {precision}: give all of them --train.precision.")


def _run(
    config: RunConfig,
    folder: Path,
    data: Dataset,
    device: torch.device,
    interrupt: Interrupt,
    ranks: Alone,
    stacked: bool,
) -> Run:
    c, steps = config.train, config.steps
    keep_memory()
    if c.threads:
        torch.set_num_threads(c.threads)
    precision = pick_precision(c.precision, device)
    env = environment(device, precision, ranks.size, c.compile, stacked)
    torch.manual_seed(c.seed)
    model = GPT(config.model, data.tokenizer.n_vocab, c.seed)
    if c.compile:
        compile_loss(model)
    ranks.place(model, device)
    optimizers = build_optimizers(model, c)
    probes = Probes(model, optimizers, data.val, steps, c.probes)

    resumed, state = resume(folder, model, optimizers, probes, data, env, ranks)
    start, val, skipped = state["step"], state["val"], state["skipped"]
    clock = Clock(state["time"], state["train_seconds"])

    with (
        Display(folder.name, start, steps, resumed=resumed) as display,
        _metrics(config, folder, state, display, ranks) as metrics,
    ):
        record: dict[str, Any] = {}
        for step in range(start, steps + 1):
            last, stop = step == steps, ranks.agree(interrupt.signum)
            scoring = last or (c.eval_every > 0 and step % c.eval_every == 0)
            if step > start or not resumed:  # a checkpoint comes after the records of its step
                if scoring:
                    scored, _ = yield Call(step, score, (model, data.val, config, precision, ranks))
                    if ranks.main:
                        write_whole(folder / "val_windows.npy", _npy(scored.windows.astype(np.float32)))
                    val = scored.named("val")
                    record |= val
                record |= probes.measure(step)
                if record:
                    record = {"step": step, "tokens": step * config.tokens_per_step, "time": clock.time} | record
                    metrics.log(record)
                    display.update(record)
                    record = {}
                if (step and step % c.checkpoint_every == 0) or last or stop:
                    state = {"offset": metrics.kept(), "time": clock.time, "train_seconds": clock.train_seconds}
                    state |= {"val": val, "skipped": skipped, "wandb_id": metrics.mirror.id}
                    best = scoring and metrics.mirror.lowers(val["val/loss"])
                    state |= {"wandb_best": metrics.mirror.best}
                    state |= {"config": tree(config), "environment": env, "fingerprint": data.fingerprint}
                    kept = state, data.tokenizer, c.keep, probes.tensors
                    saved = checkpoint.save(folder / "checkpoints", step, model, optimizers, *kept, ranks)
                    if best:
                        metrics.mirror.upload(saved)
            if last:
                break
            if stop:
                raise Interrupted(stop, f"{folder}: stopped at step {step} of {steps}; the same command resumes it")

            lr = c.lr * lr_factor(step, steps, c)
            asked = model, optimizers, data.train.tokens_N, config, step, lr, precision, ranks
            probes.keep_before(step + 1)
            (loss, norm), seconds = yield Call(step, train_step, asked)
            yield Call(step, Probes.follow, (probes,))
            clock.trained(config.tokens_per_step, seconds)
            skipped += not math.isfinite(loss + norm)
            if (step + 1) % c.log_every == 0 or step + 1 == steps:
                record = {"train/loss": loss, "train/lr": lr, "grad/norm": norm}
                record |= {"train/skipped": skipped} if c.nonfinite == "skip" else {}
                record["perf/tokens_per_s"] = clock.speed()

        if data.test:
            scored, _ = yield Call(steps, score, (model, data.test, config, precision, ranks))
            val = val | scored.named("test")
        text = ranks.first(lambda: sample_of(model if ranks.whole else load_run(folder, CPU)[0], data, precision))
        summary = summary_of(config, model, text, data, val, clock.train_seconds, env) | probes.summary()
        if ranks.main:
            write_whole(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
        metrics.finish({key: value for key, value in summary.items() if not isinstance(value, dict)})
    return summary


def _npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _metrics(config: RunConfig, folder: Path, state: dict[str, Any], display: Display, ranks: Alone) -> Metrics:
    mirror = WandbMirror.of_run(config, folder, state["wandb_id"], state["wandb_best"], display.say)
    try:
        return Metrics(folder / "metrics.jsonl", state["offset"], mirror) if ranks.main else Unwritten(mirror)
    except UserError:
        mirror.close(failed=True)
        raise
