"""Door: score or export a run, compare a study or several runs, or judge claims."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from errors import door

REFERENCE = "arm that differences are taken to: an activation, or a part of its label such as optimizer=sgd"
REPORT = "(default: report.html in the study, or in a folder beside the first of several paths)"


@dataclass(frozen=True)
class Command:
    """Score one run on its validation and test sets, or export it; compare a study or several runs; or judge claims."""

    paths: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="DIR", help="one run, a study, several, or a folder of claims")
    ]
    reference: Annotated[str | None, arg(help=REFERENCE, help_behavior_hint="(default: the study's)")] = None
    out: Annotated[Path | None, arg(help="the report; results.csv is beside it", help_behavior_hint=REPORT)] = None
    device: Annotated[
        str | None, arg(help="score on: auto, cuda, mps or cpu", help_behavior_hint="(default: auto)")
    ] = None
    corpus: Annotated[
        str | None,
        arg(name="data.corpus", help="score one run on all of this text, with its tokenizer; named as for train.py"),
    ] = None
    column: Annotated[
        str | None,
        arg(name="data.column", help="column of --data.corpus with the text", help_behavior_hint="(default: text)"),
    ] = None
    export: Annotated[
        Path | None, arg(help="new folder: export one run as a Hugging Face model, which needs no code of this project")
    ] = None
    plugin: Annotated[Path | None, arg(help="Python file that adds activations; it is executed")] = None


def main() -> None:
    """Read the command line and evaluate."""
    command = tyro.cli(Command, prog="python eval.py", use_underscores=True)

    from study.evaluate import evaluate  # late: --help needs no torch

    evaluate(**vars(command))


if __name__ == "__main__":
    sys.exit(door(main))
