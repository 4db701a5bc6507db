"""What it costs to look at the loss and the norm of the gradient after every step: a single run's step, one thread.

A step, and the look alone, which takes a copy to the host; medians of five rounds, in CPU time.

python benchmarks/nonfinite.py [--json figures.json]
"""

import math
import time

import torch
import tyro
from ours import Training, run_named
from rounds import Output, in_turn, ratio, save, say, spread

STEPS, LOOKS = 10, 1000


def main() -> None:
    """Print both times and the share of the look."""
    command = tyro.cli(Output, prog="python benchmarks/nonfinite.py", description=__doc__)
    torch.set_num_threads(1)
    run, loss, norm = Training(run_named("single")), torch.tensor(4.0), torch.tensor(1.0)

    def steps() -> None:
        for number in range(STEPS):
            run.step(number)

    def looks() -> None:
        for _ in range(LOOKS):
            assert math.isfinite(sum(torch.stack([loss, norm]).tolist()))

    times = in_turn({"step": steps, "look": looks}, clock=time.process_time)
    step, look = ([each / count for each in times[name]] for name, count in (("step", STEPS), ("look", LOOKS)))
    figures = {"step, s": spread(step), "look, s": spread(look), "look / step": ratio(look, step)}
    say("a step, ms", spread([each * 1e3 for each in step]), ".1f")
    say("the look, µs", spread([each * 1e6 for each in look]), ".1f")
    say("the look's share of a step", figures["look / step"], ".4%")
    save(command.json, figures)


if __name__ == "__main__":
    main()
