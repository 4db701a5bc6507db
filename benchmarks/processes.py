"""Two processes of one thread against one process of two threads, at the quick study's size, in turn, median of five.

python benchmarks/processes.py
"""

import multiprocessing
import statistics
import time
from pathlib import Path

STEPS = 100


def work(threads: int, barrier) -> None:
    """Train some steps of the quick study's GELU run once every process is ready."""
    import torch

    from data.dataset import prepare
    from model.gpt import GPT
    from study.config import merge
    from study.grid import expand
    from training.device import keep_memory, pick_precision
    from training.optim import build_optimizers
    from training.step import train_step

    keep_memory()
    torch.set_num_threads(threads)
    quick = Path(__file__).parent.parent / "configs" / "quick.toml"
    config = expand(merge(quick, {}), "quick")["gelu"]
    data = prepare(config.data)
    precision = pick_precision("auto", torch.device("cpu"))
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    for step in range(STEPS + 5):
        if step == 5:
            barrier.wait()
        train_step(model, optimizers, data.train.tokens_N, config, step, 1e-3, precision)
    barrier.wait()


def seconds(processes: int, threads: int) -> float:
    """Return the time in which that many processes each take `STEPS` steps."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    workers = [context.Process(target=work, args=(threads, barrier)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    ended = time.perf_counter()
    for worker in workers:
        worker.join()
    return ended - began


def main() -> None:
    """Print the ratio of the work done in the same time."""
    ratios = []
    for _ in range(5):
        one, two = seconds(1, 2), seconds(2, 1)
        ratios.append(2 * one / two)
    print(
        f"two processes do {statistics.median(ratios):.2f} times the work of one with both threads "
        f"({min(ratios):.2f} to {max(ratios):.2f}, five pairs)"
    )


if __name__ == "__main__":
    main()
