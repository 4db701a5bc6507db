"""The share of training time that the probes take: the quick study's GELU run, one thread, at two widths.

Steps with probes off and on come in turn, and a measurement follows; medians of five rounds. In CPU time, which other
processes disturb least.

python benchmarks/probes.py [--json figures.json]
"""

import dataclasses
import statistics
import time
from typing import Any

import torch
import tyro
from ours import Training, run_named
from rounds import ROUNDS, Output, save, say, spread

from training.config import RunConfig
from training.probes.probes import Probes, probe_steps

PAIRS = 10


def compare(config: RunConfig) -> dict[str, Any]:
    """Print and return the time of the probes as a share of that of a run's training steps."""
    run = Training(config)
    off, on = (
        Probes(run.model, run.optimizers, run.data.val, config.steps, factor) for factor in (0, config.train.probes)
    )
    moments = len(probe_steps(config.steps, config.train.probes))

    def step(probes: Probes, to: int) -> tuple[float, float]:
        """Return the seconds of a training step that leads to the step `to`, and those of the probes around it."""
        began = time.process_time()
        probes.keep_before(to)
        inside = time.process_time()
        run.step()
        inside = time.process_time() - inside
        probes.follow()
        probes.measure(to)
        return inside, time.process_time() - began - inside

    rounds = []
    for _ in range(ROUNDS + 1):
        pairs = [(step(off, -1), step(on, -1)) for _ in range(PAIRS)]
        plain, beside = (statistics.median(pair[n][0] for pair in pairs) for n in (0, 1))
        path = statistics.median(pair[1][1] for pair in pairs)
        measured = statistics.median(step(on, config.steps)[1] for _ in range(3))
        share = (path + moments * measured / config.steps) / plain
        rounds.append((share, plain * 1e3, beside * 1e3, path * 1e3, measured * 1e3))
    shares, *columns = zip(*rounds[1:], strict=True)
    plain, beside, path, measured = map(statistics.median, columns)
    share = spread(shares)
    print(f"width {config.model.d_model}: a step {plain:.1f} ms ({beside:.1f} with probes on, their own time apart)")
    print(f"  the path {path:.2f} ms a step, {moments} measurements of {measured:.0f} ms in {config.steps} steps")
    say("  together, share of training", share, ".2%")
    return {"share": share, "step, ms": plain, "path, ms": path, "measurement, ms": measured}


def main() -> None:
    """Compare at the quick study's width and at half of it."""
    command = tyro.cli(Output, prog="python benchmarks/probes.py", description=__doc__)
    torch.set_num_threads(1)
    quick, figures = run_named("quick", "gelu"), {}
    for d_model in (192, 96):
        network = dataclasses.replace(quick.model, d_model=d_model)
        figures[f"width {d_model}"] = compare(dataclasses.replace(quick, model=network))
    save(command.json, figures)


if __name__ == "__main__":
    main()
