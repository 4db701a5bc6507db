"""Door: train one run, or every run of a study."""

import os
import sys
from pathlib import Path

from errors import door

QUICK = Path(__file__).parent / "configs" / "quick.toml"


def main() -> int:
    """Read the command line and train; returns the exit code."""
    # Late imports, since the processes of a study import this file too, and --help needs no torch.
    from study.plan.config import parse_command

    command = parse_command(sys.argv[1:], QUICK)

    from study.command import estimate, list_activations, read_plans, train_studies
    from training.loop import train
    from training.summary import describe

    if command.list:
        list_activations(command.plugin)
        return 0
    plans = read_plans(command)
    if command.dry_run:
        estimate(plans)
        return 0
    (folder, plan), *_ = plans.items()
    if plan.is_study:
        return train_studies(plans, command)
    summary = train(plan.runs[""], folder)  # a single run is a plan of one run, which needs no name
    print(f"finished: {folder}  {describe(summary)}")
    return int(summary["status"] != "finished")


if __name__ == "__main__":
    try:
        code = door(main)
    except SystemExit as end:  # of tyro, or of a rank that ends as another did
        code = end.code
    if "RANK" in os.environ:  # threads of torch that still run can abort Python's own way out
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))
    sys.exit(code)
