"""What a study will do and what it will cost, before it does it."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from data.dataset import Dataset, prepare
from model.config import ModelConfig
from model.gpt import GPT
from model.size import size
from study.plan.engine import count_parallel, pick_engine, share_cores
from study.plan.plan import Plan
from study.plan.tuning import Left
from training.config import RunConfig
from training.device import keep_memory, pick_device, pick_precision
from training.evaluate import evaluate
from training.limits import check_available
from training.optim import build_optimizers
from training.step import compile_loss, train_step

STEPS = 8  # timed steps of each arm, after two that are not timed
START_SECONDS = 1.5  # for the process, checkpoint and sample of a run; measured on 2 cores


class Seconds(NamedTuple):
    """What a run costs on this machine: to start it, a training step, a score of the validation split."""

    start: float
    step: float
    score: float


def size_lines(plan: Plan, data: Mapping[str, Dataset]) -> list[str]:
    """Return a line for each different network: its arm, parameters and FLOPs, and how they match the first line's.

    `data` holds the prepared data of each arm. Arms with the same network share a line.
    """
    arms: dict[tuple[ModelConfig, int], list[str]] = {}
    for name, arm in plan.arms.items():
        arms.setdefault((arm.config.model, data[name].tokenizer.n_vocab), []).append(name)
    sizes = {}
    for network, names in arms.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        sizes[names[0] + others] = size(*network)
    width = max(12, *map(len, sizes))
    first = next(iter(sizes.values()))
    lines = []
    for label, cost in sizes.items():
        parameters = f"{cost.total:>12,} parameters ({cost.total / first.total - 1:+.2%})"
        flops = f"{cost.flops_per_token / 1e6:>9,.1f} MFLOP per training token"
        more = cost.flops_per_token / first.flops_per_token - 1
        lines.append(f"{label:>{width}}  {parameters}  {flops} ({more:+.2%})")
    return lines


def prepare_arms(plan: Plan) -> dict[str, Dataset]:
    """Return the data of each arm, prepared once for all arms that share it."""
    data = {config: prepare(config) for config in {arm.config.data for arm in plan.arms.values()}}
    return {name: data[arm.config.data] for name, arm in plan.arms.items()}


def measure(config: RunConfig, data: Dataset) -> Seconds:
    """Time a few training steps and one score of a run, on the threads that its config gives it."""
    torch.set_num_threads(config.train.threads)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    model = GPT(config.model, data.tokenizer.n_vocab).to(device)
    optimizers = build_optimizers(model, config.train)
    if config.train.compile:
        torch.compiler.reset()  # the compiler gives up after eight networks in one process, unless it forgets them
        compile_loss(model)
    times = []
    for step in range(STEPS + 2):
        start = time.perf_counter()
        train_step(model, optimizers, data.train.tokens_N, config, step, 0.0, precision)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    evaluate(model, data.val, config.micro_batch, precision)
    scoring = time.perf_counter() - start
    step = statistics.median(times[2:])
    # The first two steps hold what a run does once, compiling above all.
    return Seconds(START_SECONDS + sum(times[:2]) - 2 * step, step, scoring)


def dry_run(
    plan: Plan,
    left: Mapping[str, Left],
    counted: set[RunConfig],
    measure: Callable[[RunConfig, Dataset], Seconds] = measure,
) -> float:
    """Print the size of the arms' networks, the runs that are left and the hours that they take; return the hours.

    `measure` times each arm on a run's share of the cores. The text is fetched and prepared for that; nothing is
    trained or written. A grid or bracket that must be extended takes longer. Stacked runs take less than the hours
    printed, since they are counted one after another; so do runs on a cluster, of which only this machine is counted.
    Runs in `counted` cost nothing, since another study of the same command trains them; those of this study are added.
    """
    runs = list(plan.runs.values())
    for config in runs:
        check_available(config)
    engine = pick_engine(plan.study.engine, runs)
    # A stack's runs share one process, and one run is what is timed here.
    parallel = 1 if engine == "stacked" else count_parallel(runs)
    keep_memory()
    data = prepare_arms(plan)
    print(*size_lines(plan, data), sep="\n")
    seconds = 0.0
    for name, arm in plan.arms.items():
        # Claims may share runs. The first study trains them, and the others copy them.
        fresh = {*left[name].tuning, *left[name].final} - counted
        counted |= fresh
        speed = ""
        if fresh:
            cost = measure(share_cores(arm.config, parallel), data[name])
            seconds += sum(cost.start + run.steps * cost.step + _count_scores(run) * cost.score for run in fresh)
            speed = f", {arm.config.tokens_per_step / cost.step:,.0f} tokens/s"
        print(f"{name}: {len(left[name].tuning)} tuning runs and {len(left[name].final)} runs to train{speed}")
    hours = seconds / parallel / 3600
    how = "or less, since runs are stacked" if engine == "stacked" else f"{parallel} runs at a time"
    if engine == "ray":
        how += " on this machine alone"
    print(f"estimated time of {plan.source}: {hours:.2f} h, {how}")
    return hours


def _count_scores(run: RunConfig) -> int:
    """Return how often a run scores: the validation split over the run, and the test split at its end."""
    return sum(map(run.is_scored, range(run.steps + 1))) + (run.data.test_fraction > 0)
