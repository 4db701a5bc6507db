"""Runs, finished or not, read back from their folders; and `results.csv`, which holds them all in one tidy table."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from errors import UserError
from files import replacing
from study.plan.config import StudyConfig, merge
from study.plan.grid import points
from training.config import SECTIONS, WHERE

FINAL = {"status": str, "environment": dict, "sample/prompt": str, "sample/text": str}  # in summary.json, if there
PLACE = {"step": int, "tokens": int}  # in every record
RUN_FOLDER = "a run folder holds config.toml and metrics.jsonl, a study folder holds one such folder per run"


@dataclass(frozen=True)
class Run:
    """One run folder: its resolved config, the records of `metrics.jsonl`, and `summary.json` once it has finished."""

    name: str
    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def activation(self) -> str:
        """The name in the registry."""
        return str(self.config["model"]["activation"])

    @property
    def budget(self) -> int:
        """Training tokens asked for; an unfinished run has seen fewer."""
        return int(self.config["train"]["tokens"])

    @property
    def seed(self) -> int:
        """What fixes initial weights and data order, and pairs the runs of two arms."""
        return int(self.config["train"].get("seed", 0))

    @property
    def status(self) -> str:
        """`finished`, `unfinished`, `diverged` (the final loss is no number), or what the summary calls it."""
        if self.summary is None:
            return "unfinished"
        status = str(self.summary.get("status", "finished"))
        return "diverged" if status == "finished" and _number(self.summary, "val/loss") is None else status

    @property
    def progress(self) -> str:
        """How far a run came that did not finish."""
        seen = self.records[-1]["tokens"] if self.records else 0
        losses = self.curve("val/loss")
        last = f", last validation loss {losses[-1][1]:.3f}" if losses else ""
        return f"{self.status} at {seen:,} of {self.budget:,} tokens{last}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as `section.field`: all that is trained, without where it is trained."""
        sections = ((s, part) for s, part in self.config.items() if isinstance(part, dict) and s != "wandb")
        flat = {f"{section}.{field}": value for section, part in sections for field, value in part.items()}
        return {key: value for key, value in flat.items() if key not in WHERE}

    @cached_property
    def windows(self) -> np.ndarray:
        """The loss of each whole validation window after the last step, nats per token; empty where there is none."""
        path = self.folder / "val_windows.npy"
        if self.status != "finished" or not path.exists():
            return np.empty(0)
        try:
            windows = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if not isinstance(windows, np.ndarray) or windows.ndim != 1 or windows.dtype.kind != "f":
            raise UserError(f"{path} is damaged: it holds no losses.")
        return windows

    def final(self, metric: str) -> float | None:
        """Return a figure of a finished run's summary, or None: a partial figure is never passed off as a final one."""
        return _number(self.summary or {}, metric) if self.status == "finished" else None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (tokens, value) for every record that holds a finite value of the metric."""
        points = ((record["tokens"], _number(record, metric)) for record in self.records)
        return [(tokens, value) for tokens, value in points if value is not None]

    @cached_property
    def clipped(self) -> float | None:
        """Share of the recorded steps whose gradient was larger than `train.clip`; None where nothing is clipped."""
        limit, norms = _number(self.settings, "train.clip"), [norm for _, norm in self.curve("grad/norm")]
        return fmean(norm > limit for norm in norms) if limit and norms else None


@dataclass(frozen=True)
class Study:
    """What some folders hold: the runs that count, the tuning runs before them, and what each study.toml asked for."""

    runs: list[Run]
    tuning: list[Run]
    plans: dict[Path, dict[str, Any]]

    @property
    def named(self) -> str | None:
        """The arm that the first study names as its reference; None where none does."""
        studies = (plan.get("study", {}) for plan in self.plans.values())
        return next((str(study["reference"]) for study in studies if "reference" in study), None)

    @property
    def reference(self) -> str:
        """The arm named, or GELU."""
        return self.named or StudyConfig.reference

    def missing(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the folder and the settings of each run that a study asks for and that has no folder yet."""
        for folder, plan in self.plans.items():
            here = [run.settings for run in self.runs if run.folder.parent == folder]
            fields = dict.fromkeys([("train", "seed"), *(key for values, _ in points(plan) for key in values)])
            for _, sections in points(plan):
                point: dict[str, Any] = {}
                tuned = sections.get("study", {}).get("lr")
                for section, field in fields:  # of every grid: what one names, another takes as it stands or by default
                    if tuned and (section, field) == ("train", "lr"):
                        continue
                    default = getattr(SECTIONS.get(section), field, None)
                    point[f"{section}.{field}"] = sections.get(section, {}).get(field, default)
                if not any(all(s.get(key) == value for key, value in point.items()) for s in here):
                    yield folder, point


def load_run(folder: str | Path) -> Run:
    """Read one run folder. Raises `UserError` when it is none, or when one of its files is damaged."""
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder} is not a run folder: {RUN_FOLDER}.")
    config, summary = merge(folder / "config.toml", {}), folder / "summary.json"
    try:
        final = json.loads(summary.read_bytes()) if summary.exists() else None
        if summary.exists() and not _holds(final, FINAL):
            raise ValueError(f"{summary.name} is no summary")
        records = _records(folder / "metrics.jsonl")
    except (ValueError, RecursionError) as error:
        raise UserError(f"a file of the run {folder} is damaged: {error}") from error
    if "activation" not in config.get("model", {}) or "tokens" not in config.get("train", {}):
        raise UserError(
            f"{folder / 'config.toml'} does not configure a run: it lacks model.activation or train.tokens."
        )
    if not _holds(config["train"], {"tokens": int, "seed": int}):
        raise UserError(f"{folder / 'config.toml'} does not configure a run: train.tokens and train.seed are numbers.")
    return Run(folder.resolve().name, folder.resolve(), config, records, final)


def load_study(paths: Iterable[str | Path]) -> Study:
    """Read what the paths name; each is a run folder, or a study folder that holds run folders.

    Raises:
        UserError: a path holds no run, or a file is damaged.
    """
    folders: dict[Path, None] = {}
    tuning: dict[Path, None] = {}
    plans = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: {RUN_FOLDER}.")
        single = (path / "config.toml").is_file()
        found, tried = [path.resolve()] if single else run_folders(path), run_folders(path / "tune")
        if not found:
            raise UserError(f"{path} holds no run{' beside its tuning runs' if tried else ''}: {RUN_FOLDER}.")
        folders |= dict.fromkeys(found)
        tuning |= dict.fromkeys(tried)
        if (path / "study.toml").is_file():
            plans[path.resolve()] = merge(path / "study.toml", {})
    return Study([load_run(f) for f in folders], [load_run(f) for f in tuning], plans)


def write_csv(study: Study, path: Path) -> None:
    """Write one row per run: where it stands, its settings by `section.field`, and every number of its summary.

    `stage` tells the runs that count (`final`) from those that chose a learning rate (`tune`); what a run does not have
    is empty. A summary's numbers are those of a finished run only.
    """
    stages = [("final", run) for run in study.runs] + [("tune", run) for run in study.tuning]
    rows = []
    for stage, run in stages:
        home = run.folder.parent if stage == "final" else run.folder.parent.parent
        numbers = {key: run.final(key) for key in run.summary or {} if key not in run.settings}
        fingerprint = (run.summary or {}).get("data/fingerprint")
        place = {"study": home.name, "stage": stage, "run": run.name, "status": run.status}
        figures = {key: value for key, value in numbers.items() if value is not None}
        rows.append(place | run.settings | {"data/fingerprint": fingerprint} | figures)
    fields = dict.fromkeys(key for row in rows for key in row)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(fields), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def mismatch(run: Run, other: Run) -> str:
    """Return why the losses of two runs do not compare, or nothing."""
    data = [(r.summary or {}).get("data/fingerprint") for r in (run, other)]
    # An unfinished run has no fingerprint yet: its data section stands in for it.
    if data[0] != data[1] if None not in data else run.config.get("data") != other.config.get("data"):
        return f"trained on other data than {other.activation}, so the losses do not compare"
    if run.budget != other.budget:
        return (
            f"trained on {run.budget:,} tokens and {other.activation} on {other.budget:,}, so the losses do not compare"
        )
    return ""


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the settings in which the runs differ."""
    flats = [run.settings for run in runs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]


def run_folders(path: Path) -> list[Path]:
    """Return the run folders in a folder, resolved, seed-2 before seed-10; a copy that was left over is none."""
    return sorted((config.parent.resolve() for config in path.glob("[!.]*/config.toml")), key=_natural)


def _records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line cut short by a killed process is no record."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path.name}, line {number}: {error}") from error
            continue
        if not _holds(record, PLACE) or not PLACE.keys() <= record.keys():
            raise ValueError(f"{path.name}, line {number} is no record")
        records.append(record)
    return records


def _holds(found: Any, kinds: dict[str, type]) -> bool:
    """Whether this is a JSON object, in which these keys, where it has them, are of these types."""
    return isinstance(found, dict) and all(type(found[key]) is kind for key, kind in kinds.items() if key in found)


def _number(record: dict[str, Any], metric: str) -> float | None:
    value = record.get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which seed-2 comes before seed-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
