"""The whole of `train.py`: one run, a study, or a folder of studies, estimated or trained."""

import sys
from pathlib import Path

from errors import UserError
from model.plugin import load_plugin
from study.judge.results import run_folders
from study.plan.config import Command, configs_of
from study.plan.estimate import dry_run
from study.plan.plan import Plan, read_plan
from study.report.claims_page import report_claims
from study.report.compare import compare
from study.report.mirror import mirror_study
from study.run.protocol import run_plan
from training.config import RunConfig
from training.loop import train
from training.summary import describe


def train_command(command: Command) -> int:
    """Do what a command line of train.py asks for and return the exit code: 1 if a run of a study failed.

    Raises:
        UserError: as `read_plan`, for any of the files, before anything is trained.
    """
    if command.plugin:
        load_plugin(command.plugin)
    plans = {path: read_plan(path, command.flags) for path in configs_of(command.config)}
    for path, plan in plans.items():
        if path != command.config and not plan.is_study:
            raise UserError(f"{path} is a single run: a folder of configs holds studies.")
    if command.dry_run:
        counted: set[RunConfig] = set()
        hours = [dry_run(plan, counted) for plan in plans.values()]
        if len(hours) > 1:
            print(f"all of {command.config}: {sum(hours):.2f} h")
        return 0
    if command.config not in plans:
        return _train_studies({command.out / path.stem: plan for path, plan in plans.items()}, command)
    plan = plans[command.config]
    return _train_studies({command.out: plan}, command) if plan.is_study else _train_run(plan, command.out)


def _train_run(plan: Plan, folder: Path) -> int:
    summary = train(plan.runs[""], folder)
    print(f"finished: {folder}  {describe(summary)}")
    return int(summary["status"] != "finished")


def _train_studies(plans: dict[Path, Plan], command: Command) -> int:
    """Train studies by their folders, and report each as soon as it is done; claims get their verdicts at the end."""
    failed: list[str] = []
    done: list[Path] = []
    for folder, plan in plans.items():
        failed_here = run_plan(plan, folder, command.plugin, beside=done)
        done.append(folder)
        if run_folders(folder):  # none if no arm could be tuned
            rows = compare([folder], plugin=command.plugin)
            wandb = next(iter(plan.runs.values())).wandb
            mirror_study(rows, folder, wandb, failed=bool(failed_here))
        failed += failed_here
    if any(plan.claim for plan in plans.values()):
        report_claims(command.out)
    if failed:
        names = ", ".join(failed)
        print(
            f"failed: {names}. The reason is in log.txt of each; for an arm without tuned rate, of its runs in tune/.",
            file=sys.stderr,
        )
    return 1 if failed else 0
