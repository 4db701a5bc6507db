"""Door: score a checkpoint, or compare runs and write the report."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from errors import UserError, door


@dataclass(frozen=True)
class Command:
    """Score one run on its whole validation and test sets, or compare the runs of a study or several runs."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR", help="one run, or a study, or several of them")]
    reference: Annotated[str | None, arg(help="arm that differences are taken to (default: the study's)")] = None
    out: Annotated[Path | None, arg(help="the report (default: report.html in the study, or here for several)")] = None
    device: Annotated[str, arg(help="where one run is scored: auto, cuda, mps or cpu")] = "auto"
    plugin: Annotated[Path | None, arg(help="Python file that adds activations; it is executed")] = None


def main() -> None:
    """Print a score or a table, the latter with a report beside it."""
    command = tyro.cli(Command, prog="python eval.py")
    if not command.paths:
        raise UserError("name a run, a study, or several of them, such as: python eval.py runs/quick")
    if command.plugin:
        from model.activations import load_plugin

        load_plugin(command.plugin)
    only = command.paths[0]
    if len(command.paths) == 1 and (only / "config.toml").exists():
        from training.score import score_run

        score_run(only, command.device)
        return
    from study.compare import compare

    compare(command.paths, command.reference, command.out)


if __name__ == "__main__":
    sys.exit(door(main))
