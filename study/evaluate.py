"""The whole of `eval.py`: one run scored or exported, a study or several runs compared, claims judged."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from errors import UserError
from study.judge.results import run_folders
from study.plan.plan import claims_in
from study.report.claims_page import report_claims
from study.report.compare import compare
from training.score import score_run, score_text

# What eval.py can do, and the flags that go with it. --plugin goes with everything.
MODES = {
    "one run to score": ("--device",),
    "one run to score on another text": ("--data.corpus", "--data.column", "--device"),
    "one run to export": ("--export",),
    "runs to compare": ("--reference", "--out"),
    "claims to judge": ("--out",),
}


def evaluate(
    paths: Sequence[Path],
    reference: str | None = None,
    out: Path | None = None,
    device: str | None = None,
    corpus: str | None = None,
    column: str | None = None,
    export: Path | None = None,
    plugin: Path | None = None,
) -> None:
    """Do what a command line of eval.py asks for; a flag that was not given is None.

    Raises:
        UserError: a flag does not go with what the paths and flags ask for, or as the function that does it.
    """
    if not paths:
        raise UserError("name a run, a study, or several of them, such as: python eval.py runs/quick")
    only = paths[0]
    mode = pick_mode(paths, corpus, export)
    flags = {
        "--reference": reference,
        "--out": out,
        "--device": device,
        "--data.corpus": corpus,
        "--data.column": column,
        "--export": export,
    }
    check_flags(mode, [flag for flag, value in flags.items() if value is not None])
    if plugin:
        from model.plugin import load_plugin

        load_plugin(plugin)
    if mode == "one run to score":
        score_run(only, device or "auto")
    elif corpus is not None:
        score_text(only, device or "auto", corpus, column)
    elif export is not None:
        from training.export import export_run  # late: only an export needs it

        export_run(only, export.expanduser())
    elif mode == "claims to judge":
        report_claims(only, out and out.expanduser())
    else:
        _compare(paths, reference, out and out.expanduser())


def pick_mode(paths: Sequence[Path], corpus: str | None, export: Path | None) -> str:
    """Return the mode that the paths and flags ask for, one of `MODES`."""
    only = paths[0]
    if len(paths) == 1 and (only / "config.toml").exists():
        if export is not None:
            return "one run to export"
        return "one run to score" if corpus is None else "one run to score on another text"
    # What reads the run then says that it is missing.
    if len(paths) == 1 and export is not None and not only.exists():
        return "one run to export"
    # A folder of studies has no study.toml and no runs of its own.
    own = (only / "study.toml").exists() or run_folders(only)
    if len(paths) == 1 and not own and any(only.glob("*/study.toml")):
        return "claims to judge"
    return "runs to compare"


def check_flags(mode: str, flags: Iterable[str]) -> None:
    """Raise `UserError` for a flag that does not go with the mode."""
    for flag in flags:
        if flag not in MODES[mode]:
            others = " or ".join(other for other, allowed in MODES.items() if flag in allowed)
            raise UserError(f"{flag} goes with {others}. Here: {mode}.")


def _compare(paths: Sequence[Path], reference: str | None, out: Path | None) -> None:
    """Compare runs. A claim among them, if its study is named alone, gets its verdict too."""
    compare(paths, reference, out)
    if len(paths) == 1 and (paths[0] / "study.toml").exists() and claims_in(paths[0]):
        report_claims(paths[0], out and out.with_name("verdict.html"))
