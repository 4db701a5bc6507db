"""Two processes of one thread against one process of two threads, at the quick study's size, in turn, medians of five.

One of one thread by itself tells what two could gain at most: twice its work in its time.

python benchmarks/processes.py [--json figures.json]
"""

import multiprocessing
import time

import torch
import tyro
from ours import Training, run_named
from rounds import ROUNDS, Output, ratio, save, say

from training.device import keep_memory

STEPS = 100


def work(threads: int, barrier) -> None:
    """Train some steps of the quick study's GELU run once every process is ready."""
    keep_memory()
    torch.set_num_threads(threads)
    run = Training(run_named("quick", "gelu"))
    for number in range(STEPS + 5):
        if number == 5:
            barrier.wait()
        run.step(number)
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
    command = tyro.cli(Output, prog="python benchmarks/processes.py", description=__doc__)
    times: dict[str, list[float]] = {"one": [], "two": [], "alone": []}
    for _ in range(ROUNDS):
        times["one"].append(seconds(1, 2))
        times["two"].append(seconds(2, 1))
        times["alone"].append(seconds(1, 1))
    both = [2 * each for each in times["one"]]
    figures, most = ratio(both, times["two"]), ratio(both, times["alone"])
    say("work of two processes of one thread against one of two", figures)
    say("the same if neither slowed the other", most)
    save(command.json, {"seconds": times, "two / one": figures, "2 alone / one": most})


if __name__ == "__main__":
    main()
