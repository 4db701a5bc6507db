"""What `train.py` does: reads plans, estimates them, trains studies and reports them."""

import sys
from pathlib import Path

from errors import UserError
from model.activations import ACTIVATIONS, formulas
from model.plugin import load_plugin
from study.judge.results import run_folders
from study.plan.config import Command, configs_of
from study.plan.estimate import dry_run
from study.plan.plan import Plan, read_plan
from study.report.claims_page import report_claims
from study.report.compare import compare
from study.report.mirror import mirror_study
from study.run.protocol import run_plan
from study.run.search import left_to_train
from study.run.workers import StudyLock
from training.config import RunConfig


def read_plans(command: Command) -> dict[Path, Plan]:
    """Return what a command line asks for, by folder: a run, a study, or the studies of a folder of configs.

    Raises:
        UserError: as `read_plan`, for any of the files, before anything is trained.
    """
    if command.plugin:
        load_plugin(command.plugin)
    plans: dict[Path, Plan] = {}
    for path in configs_of(command.config):
        plan = read_plan(path, command.flags)
        if path == command.config:
            return {command.out: plan}
        if not plan.is_study:
            raise UserError(f"{path} is a single run: a folder of configs holds studies.")
        plans[command.out / path.stem] = plan
    return plans


def list_activations(plugin: Path | None) -> None:
    """Print the names of the registry, each with its formula and source, and those that a plugin adds."""
    if plugin:
        load_plugin(plugin)
    words = formulas()
    width = max(map(len, ACTIVATIONS))
    for name in ACTIVATIONS:
        print(f"{name:<{width}}  {words.get(name, f'from {plugin}')}")


def estimate(plans: dict[Path, Plan]) -> None:
    """Print the runs of each plan, and the hours that they take."""
    counted: set[RunConfig] = set()
    hours = [dry_run(plan, left_to_train(plan, folder), counted) for folder, plan in plans.items()]
    if len(hours) > 1:
        print(f"all {len(hours)} studies: {sum(hours):.2f} h")


def train_studies(plans: dict[Path, Plan], command: Command) -> int:
    """Train studies by their folders, and report each as soon as it is done; claims get their verdicts at the end.

    Returns:
        The exit code: 1 if a run failed.
    """
    failed = False
    done: list[Path] = []
    for folder, plan in plans.items():
        trains = any(left_to_train(plan, folder).values())
        failed_here = run_plan(plan, folder, beside=done)
        done.append(folder)
        if failed_here:  # said at once: on a full disk there is no report
            failed = True
            names = ", ".join(failed_here)
            print(
                f"failed: {names}. The reason is in log.txt of each; for an arm without tuned rate, of its runs in "
                "tune/.",
                file=sys.stderr,
            )
        with StudyLock(folder) as lock:
            if not lock.take_alone():
                print(f"{folder}: trained. The last of the commands that train it writes the report.")
            elif run_folders(folder):  # none if no arm could be tuned
                rows = compare([folder])
                # wandb has a finished study already, unless it was off when the study was trained.
                if trains or not (folder / "wandb").exists():
                    wandb = next(iter(plan.runs.values())).wandb
                    mirror_study(rows, folder, wandb, failed=bool(failed_here))
    if any(plan.claim for plan in plans.values()):
        report_claims(command.out)
    return int(failed)
