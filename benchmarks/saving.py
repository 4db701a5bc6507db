"""The share of training time that saving takes: the quick study's GELU run, one thread, at its own interval.

Tensors, tokenizer, SHA-256 and fsync, on the disk of the working directory; steps and saves in turn, medians of nine.
In wall-clock time, since a save waits for the disk: run it on an idle machine.

python benchmarks/saving.py [--json figures.json]
"""

import tempfile
from itertools import count
from pathlib import Path

import torch
import tyro
from ours import Training, run_named
from rounds import Output, in_turn, save, say, spread

from training import checkpoint
from training.probes.probes import Probes

ROUNDS, STEPS = 9, 5


def main() -> None:
    """Print the time of a step and of a save, and the share of the latter."""
    command = tyro.cli(Output, prog="python benchmarks/saving.py", description=__doc__)
    torch.set_num_threads(1)
    run, saved = Training(run_named("quick", "gelu")), count()
    c = run.config.train
    probes = Probes(run.model, run.optimizers, run.data.val, run.config.steps, c.probes)

    def steps() -> None:
        for number in range(STEPS):
            run.step(number)

    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)

        def keep() -> None:
            kept = {"offset": 0}, run.data.tokenizer, c.keep, probes.tensors
            checkpoint.save(folder, next(saved), run.model, run.optimizers, *kept)

        times = in_turn({"steps": steps, "save": keep}, ROUNDS)
        newest = checkpoint.newest(folder)
        assert newest is not None
        size = sum(file.stat().st_size for file in newest.iterdir())
    saves = len({*range(c.checkpoint_every, run.config.steps, c.checkpoint_every), run.config.steps})
    step = [each / STEPS for each in times["steps"]]
    share = spread([saves * b / (run.config.steps * a) for a, b in zip(step, times["save"], strict=True)])
    say("a step, ms", spread([each * 1e3 for each in step]), ".1f")
    say(f"a save of {size / 1e6:.1f} MB, ms", spread([each * 1e3 for each in times["save"]]), ".1f")
    say(f"{saves} saves in {run.config.steps} steps, share of training time", share, ".2%")
    save(command.json, {"step, s": spread(step), "save, s": spread(times["save"]), "bytes": size, "share": share})


if __name__ == "__main__":
    main()
