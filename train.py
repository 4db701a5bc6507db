"""Door: train one run, or every run of a study."""

import os
import sys
from pathlib import Path

from errors import UserError, door

QUICK = Path(__file__).parent / "configs" / "quick.toml"


def main() -> int:
    """Read the command line and train; returns the exit code."""
    # late, since a study's processes import this file too
    from study.plan.config import configs_of, merge, parse_command
    from study.plan.grid import expand, is_study, study_config

    command = parse_command(sys.argv[1:], QUICK)

    if command.plugin:
        from model.plugin import load_plugin

        load_plugin(command.plugin)
    trees = {path: merge(path, command.flags) for path in configs_of(command.config)}
    runs = {path: expand(tree, f"{path} and the flags") for path, tree in trees.items()}
    claims = {}
    for path, tree in trees.items():  # all of them, before anything is trained
        study_config(tree, f"{path} and the flags")
        if "claim" in tree or "prediction" in tree:
            from study.plan.claims import read_claim  # where it is needed: it takes scipy

            claims[path] = read_claim(tree, str(path))
        if not is_study(tree) and (given := command.flags.get("study")):
            raise UserError(f"--study.{next(iter(given))} goes with a study, and {path} is a single run so.")
        if path != command.config and not is_study(tree):
            raise UserError(f"{path} is a single run: a folder of configs holds studies.")

    if command.dry_run:
        from study.plan.estimate import dry_run
        from training.config import RunConfig

        counted: set[RunConfig] = set()
        hours = [dry_run(tree, f"{path} and the flags", counted) for path, tree in trees.items()]
        if len(hours) > 1:
            print(f"all of {command.config}: {sum(hours):.2f} h")
        return 0
    if command.config in trees and not is_study(trees[command.config]):
        from training.loop import train
        from training.summary import describe

        summary = train(runs[command.config][""], command.out)
        print(f"finished: {command.out}  {describe(summary)}")
        return int(summary["status"] != "finished")

    from study.judge.results import run_folders
    from study.report.claims_page import report_claims
    from study.report.compare import compare
    from study.report.mirror import mirror_study
    from study.run.protocol import run_study

    failed, done = [], []
    for path, tree in trees.items():
        folder = command.out if path == command.config else command.out / path.stem
        unfinished = run_study(tree, folder, command.plugin, f"{path} and the flags", done)
        done.append(folder)
        if run_folders(folder):  # else no arm could be tuned
            rows = compare([folder], plugin=command.plugin)
            mirror_study(rows, folder, next(iter(runs[path].values())).wandb, failed=bool(unfinished))
        failed += unfinished
    if claims:
        report_claims(command.out)
    if failed:
        print(
            f"failed: {', '.join(failed)}; log.txt of each, or of the runs in tune/ that were to tune it, says why",
            file=sys.stderr,
        )
    return 1 if failed else 0


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
