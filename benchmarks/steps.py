"""Training steps on a CPU against nanoGPT and transformers' GPT-2, same size and batch, in turn, medians of five.

Tokens/s are also given as a share of the matrix-product peak (model FLOPs utilisation), which is measured in every
round too: a processor that others share is not equally fast from one minute to the next.

python benchmarks/steps.py --nanogpt PATH [--only 6x256] [--compile] [--json figures.json] [--no-keep-memory]
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from peers import gpt2, gpt2_step, nanogpt, nanogpt_step, our_step, peers, random_tokens
from rounds import Output, auto_dtype, gemm_flops, in_turn, machine, process, ratio, save, say

from model.config import ModelConfig
from model.size import size
from training.config import RunConfig, TrainConfig
from training.device import keep_memory

SIZES = {  # name: layers, heads, width, context, vocabulary, batch
    "6x256": (6, 4, 256, 256, 4096, 16),
    "char": (4, 4, 128, 64, 65, 12),
    "6x768": (6, 12, 768, 256, 4096, 8),
    "6x768x16": (6, 12, 768, 256, 4096, 16),
}


@dataclass(frozen=True)
class Command(Output):
    """Time training steps."""

    nanogpt: Path | None = None
    """checkout of nanoGPT; without it, it is left out"""
    only: Literal["", "6x256", "char", "6x768", "6x768x16"] = ""
    """one of the sizes"""
    compile: bool = False
    """ours and nanoGPT compiled too (torch.compile), beside those that run as written"""
    keep_memory: bool = True
    """as a run does; False shows what that saves"""


def run_of(name: str, **options: Any) -> RunConfig:
    """Return our run at one size; `options` are of its training."""
    n_layer, n_head, d_model, context, _, batch = SIZES[name]
    network = ModelConfig(activation="gelu", n_layer=n_layer, n_head=n_head, d_model=d_model, context=context)
    return RunConfig(model=network, train=TrainConfig(batch_size=batch, device="cpu", **options))


def repeats(run: RunConfig) -> int:
    """Return how many steps it takes to time them well."""
    return 1 if run.tokens_per_step > 1000 else 20


def work(label: str, name: str, checkout: str = "", keeps: str = "yes") -> Callable[[], object]:
    """Return a turn of training steps at one size, by ours or a peer; ours keeps its memory, as a run does."""
    precision = "fp32" if label.startswith("ours fp32") else "auto"
    run, n_vocab = run_of(name, precision=precision, compile=label.endswith("compiled")), SIZES[name][4]
    tokens_N = random_tokens(n_vocab)
    if label.startswith("nanoGPT"):
        step = nanogpt_step(nanogpt(Path(checkout), run.model, n_vocab), tokens_N, run)
    elif label == "transformers":
        step = gpt2_step(gpt2(run.model, n_vocab), tokens_N, run)
    else:
        if keeps:
            keep_memory()
        step = our_step(tokens_N, run, n_vocab)
    step()  # memory that later steps find there is still asked for in the second: no turn that counts has either
    return lambda: [step() for _ in range(repeats(run))]


def sides(checkout: Path | None, compiled: bool) -> tuple[list[str], list[str]]:
    """Return the labels of ours and those of the peers."""
    ours, others = ["ours", "ours fp32"], peers(checkout)
    if compiled:
        ours += [f"{label} compiled" for label in ours]
        others += [f"{label} compiled" for label in others if label == "nanoGPT"]
    return ours, others


def compare(name: str, checkout: Path | None, compiled: bool, keeps: bool) -> dict[str, Any]:
    """Print and return tokens/s of each at one size, and the ratios."""
    run, n_vocab, works = run_of(name), SIZES[name][4], {}
    ours, others = sides(checkout, compiled)
    peaks: dict[torch.dtype, list[float]] = {auto_dtype(): [], torch.float32: []}  # what the sides multiply in
    limits = {str(dtype): lambda dtype=dtype: peaks[dtype].append(gemm_flops(dtype)) for dtype in peaks}
    with ExitStack() as held:
        for label in ours + others:
            arguments = label, name, str(checkout or ""), "yes" if keeps else ""
            works[label] = held.enter_context(process("steps", *arguments))
        times = in_turn(limits | works)
    figures: dict[str, Any] = {"sizes": SIZES[name]}
    tokens = repeats(run) * run.tokens_per_step
    flops = tokens * size(run.model, n_vocab).flops_per_token
    for label in works:
        speed = tokens / statistics.median(times[label])
        dtype = auto_dtype() if label in ("ours", "ours compiled") else torch.float32
        limit = peaks[dtype][1:]  # the first is the warm-up's
        share = ratio([flops / peak for peak in limit], times[label])
        figures[label] = {"tokens_per_s": speed, "utilisation": share}
        print(f"{name}  {label:18s} {speed:9,.0f} tokens/s")
        say(f"{name}  {label}, share of the peak in its precision", share)
    for label in others:
        for mine in ours:
            figures[f"{mine} / {label}"] = ratio(times[label], times[mine])
            say(f"{name}  {mine} against {label}", figures[f"{mine} / {label}"])
    return figures


def main() -> None:
    """Compare at every size."""
    command = tyro.cli(Command, prog="python benchmarks/steps.py")
    limits = machine()
    names = [command.only] if command.only else list(SIZES)
    save(
        command.json,
        {"machine": limits}
        | {name: compare(name, command.nanogpt, command.compile, command.keep_memory) for name in names},
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
