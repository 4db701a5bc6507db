"""Runs side by side: the table in the terminal and the report beside them."""

from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from study.report import write_report
from study.results import load_runs, print_table, table


def compare(paths: Sequence[Path], reference: str = "gelu", out: Path | None = None) -> Path:
    """Print the table of the runs, write their report and return its path.

    The report stands in the study's folder, or in the working directory where several folders are named, unless `out`
    says otherwise.

    Raises:
        UserError: a path holds no run, or the report cannot be written there.
    """
    runs = load_runs(paths)
    print_table(table(runs, reference))
    path = out or (paths[0] if len(paths) == 1 else Path()) / "report.html"
    try:
        write_report(runs, path, " and ".join(p.name for p in paths), _reproduce(paths), reference)
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}. Choose another --out.") from None
    print(f"report: {path}")
    return path


def _reproduce(paths: Sequence[Path]) -> str:
    """The commands that train the same runs again: a folder holds the whole config of its study or run."""
    configs = [next(p for p in (path / "study.toml", path / "config.toml", path) if p.exists()) for path in paths]
    return "\n".join(f"python train.py {config} --out=runs/again-{config.parent.name}" for config in configs)
