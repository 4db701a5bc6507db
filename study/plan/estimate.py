"""What a study will do and what it will cost, before it does it."""

import math
import statistics
import time

import torch

from data.dataset import Dataset, prepare
from model.gpt import GPT
from study.plan.config import Tree
from study.plan.grid import expand, study_config
from study.plan.tuning import arm_of, arms, tuning_runs
from study.run.display import match
from study.run.executor import at_once, placed
from study.run.protocol import pick_engine
from training.config import RunConfig
from training.device import keep_memory, pick_device, pick_precision
from training.evaluate import score
from training.optim import build_optimizers
from training.run import check_available
from training.step import compile_loss, train_step

STEPS = 8  # timed steps of each arm, after two that are not
START_SECONDS = 1.5  # of a run: its process, checkpoint and sample; measured on 2 cores


def dry_run(tree: Tree, source: str, counted: set[RunConfig]) -> float:
    """Print the runs, the match of the arms in parameters and FLOPs, and the hours that the study takes; return these.

    It times a few steps and one evaluation of each arm on a run's share of the cores. The text is fetched and prepared
    for that, nothing is trained or written. A learning-rate grid that must be extended takes longer; stacked runs,
    counted one after another, take less, as do those on a cluster, of which this machine alone is counted. Runs in
    `counted`, to which these are added, cost nothing: a study of the same command has them.
    """
    study = study_config(tree, source)
    runs, compared = expand(tree, source), arms(tree, source)
    trials = {name: tuning_runs(name, config, its, its.lr) for name, (config, its) in compared.items()}
    for config in runs.values():
        check_available(config)
    engine = pick_engine(study.engine, runs.values())
    parallel = 1 if engine == "stacked" else at_once(runs.values())
    keep_memory()
    data = {config: prepare(config) for config in {run.data for run in runs.values()}}
    print(*match((c.model, data[c.data].tokenizer.n_vocab) for c, _ in compared.values()), sep="\n")
    seconds = 0.0
    for name, (config, _) in compared.items():
        start, step, scoring = _measure(placed(config, source, parallel), data[config.data])
        mine = [run for run in runs.values() if arm_of(run, compared) == name]
        tuning = [run for _, run in trials[name].values()]
        for run in {*mine, *tuning} - counted:
            every = run.train.eval_every or run.steps  # 0: scored after its last step alone
            scores = math.ceil(run.steps / every) + (run.train.eval_every > 0) + (run.data.test_fraction > 0)
            seconds += start + run.steps * step + scores * scoring
        counted.update(mine, tuning)
        speed = f"{config.tokens_per_step / step:,.0f} tokens/s"
        print(f"{name or config.model.activation}: {len(tuning)} tuning runs, {len(mine)} runs, {speed}")
    hours = seconds / parallel / 3600
    how = "or less, since runs are stacked" if engine == "stacked" else f"{parallel} runs at a time"
    how += " on this machine alone" if engine == "ray" else ""
    print(f"estimated time of {source}: {hours:.2f} h, {how}")
    return hours


def _measure(config: RunConfig, data: Dataset) -> tuple[float, float, float]:
    """Return the seconds that a run takes to begin, for a training step and for a score of the validation split."""
    torch.set_num_threads(config.train.threads)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    model = GPT(config.model, data.tokenizer.n_vocab).to(device)
    optimizers = build_optimizers(model, config.train)
    if config.train.compile:
        torch.compiler.reset()  # else it counts the arms before, and from the ninth on compiles no more
        compile_loss(model)
    times = []
    for step in range(STEPS + 2):
        began = time.perf_counter()
        train_step(model, optimizers, data.train.tokens_N, config, step, 0.0, precision)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    score(model, data.val, config, precision)
    scoring = time.perf_counter() - began
    step = statistics.median(times[2:])
    return START_SECONDS + sum(times[:2]) - 2 * step, step, scoring
