"""Door: score or export a checkpoint, or compare runs and write the report."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from errors import UserError, door


@dataclass(frozen=True)
class Command:
    """Score one run on its validation and test sets or export it, compare a study or several runs, or judge claims."""

    paths: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="DIR", help="one run, a study, several, or a folder of claims")
    ]
    reference: Annotated[
        str | None,
        arg(
            help="what differences are taken to: an activation, or such as optimizer=sgd where that varies",
            help_behavior_hint="(default: the study's)",
        ),
    ] = None
    out: Annotated[
        Path | None,
        arg(
            help="the report; its figures and results.csv stand beside it",
            help_behavior_hint="(default: report.html in the study, or here for several)",
        ),
    ] = None
    device: Annotated[
        str | None,
        arg(help="where one run is scored: auto, cuda, mps or cpu", help_behavior_hint="(default: auto)"),
    ] = None
    corpus: Annotated[
        str | None,
        arg(
            name="data.corpus",
            help="score one run on all of another text instead, named as for train.py, with the run's own tokenizer",
        ),
    ] = None
    column: Annotated[
        str | None,
        arg(
            name="data.column",
            help="of --data.corpus: column that holds the text",
            help_behavior_hint="(default: text)",
        ),
    ] = None
    export: Annotated[
        Path | None,
        arg(help="new folder: one run as a Hugging Face model, which transformers loads without code of ours"),
    ] = None
    plugin: Annotated[Path | None, arg(help="Python file that adds activations; it is executed")] = None


def main() -> None:
    """Print a score or a table, the latter with a report beside it, or write an export."""
    command = tyro.cli(Command, prog="python eval.py")
    out, export = (path and path.expanduser() for path in (command.out, command.export))  # no shell does after a =
    command = replace(command, out=out, export=export)
    if not command.paths:
        raise UserError("name a run, a study, or several of them, such as: python eval.py runs/quick")
    only = command.paths[0]
    single = len(command.paths) == 1 and (only / "config.toml").exists()
    if single and (command.reference is not None or command.out is not None):
        raise UserError(f"{only} is one run, to be scored: --reference and --out go with a study or several runs.")
    if not single and command.device is not None:
        raise UserError("--device goes with one run, to be scored; a study or several runs are read from their files.")
    if command.export is not None and not single:
        raise UserError("--export goes with one run, such as: python eval.py runs/relu --export relu-hf")
    if command.export is not None and command.device is not None:
        raise UserError("--device is where a run is scored; --export writes a folder instead.")
    if command.corpus is not None and (not single or command.export is not None):
        raise UserError("--data.corpus goes with one run, to be scored on that text; not with --export or several.")
    if command.column is not None and command.corpus is None:
        raise UserError("--data.column goes with --data.corpus, such as: --data.corpus=other.jsonl --data.column=body")
    if command.plugin:
        from model.plugin import load_plugin

        load_plugin(command.plugin)
    if command.export is not None:
        from training.export import export_run

        export_run(only, command.export)
        return
    if single:
        from training.score import score_run, score_text

        if command.corpus is not None:
            score_text(only, command.device or "auto", command.corpus, command.column)
        else:
            score_run(only, command.device or "auto")
        return
    from study.judge.results import run_folders

    own = (only / "study.toml").exists() or run_folders(only)
    if len(command.paths) == 1 and not own and any(only.glob("*/study.toml")):
        from study.report.claims_page import report_claims

        if command.reference is not None:
            raise UserError("--reference goes with a study or several runs; a claim names its arms itself.")
        report_claims(only, command.out)
        return
    from study.plan.plan import claims_in
    from study.report.compare import compare

    compare(command.paths, command.reference, command.out, command.plugin)
    if len(command.paths) == 1 and (only / "study.toml").exists() and claims_in(only):
        from study.report.claims_page import report_claims

        report_claims(only, command.out and command.out.with_name("verdict.html"))


if __name__ == "__main__":
    sys.exit(door(main))
