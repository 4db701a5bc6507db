"""Runs, finished or not, read back from their folders."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from data.config import FOLLOW_SEED
from errors import UserError
from study.plan.config import StudyConfig, Tree, merge, trained_settings
from study.plan.grid import points
from training.config import SECTIONS
from training.contents import RUN_FOLDER, read_records, read_summary, read_tree, read_windows


@dataclass(frozen=True)
class RunResult:
    """One run folder: its config, the records of `metrics.jsonl`, and the summary, None until the run has finished.

    The config is plain data, not a `RunConfig`: a run of a plugin's activation can be compared without the plugin.
    """

    name: str
    folder: Path
    config: Tree
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    bracketed: bool = False  # one of several runs of its arm and seed, which differ in their learning rate

    @property
    def activation(self) -> str:
        """The name in the registry."""
        return str(self.config["model"]["activation"])

    @property
    def budget(self) -> int:
        """Training tokens in the config; an unfinished run has seen fewer."""
        return int(self.config["train"]["tokens"])

    @property
    def seed(self) -> int:
        """The seed, by which the runs of two arms are paired."""
        return int(self.config["train"].get("seed", 0))

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.config["train"].get("lr", math.nan))

    @property
    def status(self) -> str:
        """`finished`, `unfinished`, or `diverged` if the final loss is not finite."""
        if self.summary is None:
            return "unfinished"
        return "finished" if _number(self.summary, "val/loss") is not None else "diverged"

    @property
    def progress(self) -> str:
        """How far a run came that has no result."""
        seen = self.records[-1]["tokens"] if self.records else 0
        losses = self.curve("val/loss")
        last = f", last validation loss {losses[-1][1]:.3f}" if losses else ""
        return f"{self.status} at {seen:,} of {self.budget:,} tokens{last}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as `section.field`, without the fields that do not change what is trained.

        The learning rate of a bracketed run is left out too: its arm trains at several.
        """
        settings = trained_settings(self.config)
        if self.bracketed:
            settings.pop("train.lr", None)
        return settings

    def agrees(self, settings: dict[str, Any]) -> bool:
        """Whether the run has these settings. A field that is newer than the run counts as equal."""
        # Whoever adds a field to a config gives it the default under which older runs were trained.
        return all(self.settings.get(key, value) == value for key, value in settings.items())

    @cached_property
    def windows(self) -> np.ndarray:
        """The loss of each whole validation window after the last step, nats per token; empty if there is none."""
        path = self.folder / "val_windows.npy"
        return read_windows(path) if self.status == "finished" and path.exists() else np.empty(0)

    def final(self, metric: str) -> float | None:
        """Return a figure of a finished run's summary. Any other run has none: its last record is not final."""
        return _number(self.summary or {}, metric) if self.status == "finished" else None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (tokens, value) for every record that holds a finite value of the metric."""
        values = [(record["tokens"], _number(record, metric)) for record in self.records]
        return [(tokens, value) for tokens, value in values if value is not None]

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the data, which only a finished run knows."""
        return (self.summary or {}).get("data/fingerprint")

    @cached_property
    def clipped(self) -> float | None:
        """Share of the recorded steps whose gradient was larger than `train.clip`; None where nothing is clipped."""
        limit = _number(self.settings, "train.clip")
        norms = [norm for _, norm in self.curve("grad/norm")]
        return fmean(norm > limit for norm in norms) if limit and norms else None


@dataclass(frozen=True)
class Study:
    """The runs of some folders, the tuning runs before them, and the plan (study.toml) of each study folder.

    `earlier` holds the plans whose results had been seen before a study grew, in order.
    """

    runs: list[RunResult]
    tuning: list[RunResult]
    plans: dict[Path, Tree]
    earlier: dict[Path, list[Tree]] = dataclasses.field(default_factory=dict)

    # Settings of several studies that are read together: the first plan that has one decides.
    @property
    def named(self) -> str | None:
        """The reference in the first plan that names one; None where none does."""
        for plan in self.plans.values():
            if "reference" in plan.get("study", {}):
                return str(plan["study"]["reference"])
        return None

    @property
    def margin(self) -> float:
        """The smallest difference that matters, from the first plan."""
        plan = next(iter(self.plans.values()), {})
        return float(plan.get("study", {}).get("margin", StudyConfig.margin))

    @property
    def homes(self) -> dict[Path, str]:
        """The folder of each study and its name: that of the folder, or the whole path if two have the same."""
        folders = list(dict.fromkeys(run.folder.parent for run in self.runs))
        names = [folder.name for folder in folders]
        return {folder: folder.name if names.count(folder.name) == 1 else str(folder) for folder in folders}

    def missing(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return each planned run that has no folder yet: the folder of its study and its settings (`planned`)."""
        found = []
        for folder, plan in self.plans.items():
            runs = [run for run in self.runs if run.folder.parent == folder]
            for settings, _ in planned(plan):
                if not any(run.agrees(settings) for run in runs):
                    found.append((folder, settings))
        return found


def planned(plan: Tree) -> list[tuple[dict[str, Any], bool]]:
    """Return, for each run that a study.toml asks for, the settings that name it, and whether it is bracketed.

    They are its activation, its seed and the settings in which runs differ. Others are left out: a default may have
    changed since. So is the learning rate of a run that is tuned.
    """
    # A plan is not made of `study.plan.plan`: that would need the plugins of its activations.
    runs: list[dict[str, Any]] = []
    bracketed = []
    for _, sections in points(plan, "study.toml"):
        config = {}
        for name, part in SECTIONS.items():
            defaults = {field.name: field.default for field in dataclasses.fields(part)}
            config[name] = defaults | sections.get(name, {})
        settings = trained_settings(config)
        study = sections.get("study", {})
        if study.get("lr"):
            del settings["train.lr"]
        runs.append(settings)
        bracketed.append(bool(study.get("lr")) and study.get("bracket", StudyConfig.bracket) > 1)
    # Every arm is named by its activation and paired by seed, even if these are the same for all runs.
    fields = ["model.activation", "train.seed"]
    fields += [key for key in _differing(runs) if key not in fields]
    named = [{key: settings[key] for key in fields if key in settings} for settings in runs]
    return list(zip(named, bracketed, strict=True))


def read_result(folder: str | Path) -> RunResult:
    """Read one run folder.

    Raises:
        UserError: it is not a run folder, or one of its files is damaged.
    """
    folder = Path(folder).resolve()
    summary = read_summary(folder)  # first, since it has the hashes of the other files
    return RunResult(folder.name, folder, read_tree(folder), read_records(folder / "metrics.jsonl"), summary)


def load_study(paths: Iterable[str | Path]) -> Study:
    """Read run folders, and study folders with all their runs.

    Raises:
        UserError: a path holds no run, or a file is damaged.
    """
    folders: list[Path] = []
    tuning: list[Path] = []
    plans, earlier = {}, {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: {RUN_FOLDER}.")
        runs = [path.resolve()] if (path / "config.toml").is_file() else run_folders(path)
        trials = run_folders(path / "tune")
        if not runs:
            raise UserError(f"{path} holds no run{' beside its tuning runs' if trials else ''}: {RUN_FOLDER}.")
        folders += runs
        tuning += trials
        if (path / "study.toml").is_file():
            plans[path.resolve()] = merge(path / "study.toml", {})
            # A study that grew after a look at its results keeps the plan of each look.
            looks = sorted(path.glob("study-*.toml"), key=_natural)
            earlier[path.resolve()] = [merge(look, {}) for look in looks]
    # Only the plan knows which arms train each seed at several rates: a run's config is the same either way.
    brackets = {}
    for path, plan in plans.items():
        brackets[path] = [settings for settings, bracketed in planned(plan) if bracketed]
    results = []
    for folder in dict.fromkeys(folders):  # a run that two paths name counts once
        run = read_result(folder)
        bracketed = any(run.agrees(settings) for settings in brackets.get(folder.parent, []))
        results.append(dataclasses.replace(run, bracketed=bracketed))
    return Study(results, [read_result(folder) for folder in dict.fromkeys(tuning)], plans, earlier)


def mismatch(run: RunResult, other: RunResult) -> str:
    """Return why the losses of two runs do not compare, or an empty string."""
    ours, theirs = run.fingerprint, other.fingerprint
    follows_seed = run.settings.get("data.split_seed") == FOLLOW_SEED and run.seed != other.seed
    # An unfinished run has no fingerprint yet, and each seed may hold out other documents on purpose. Then the sections
    # that describe the data stand in for it.
    if ours is None or theirs is None or follows_seed:
        ours, theirs = run.config.get("data"), other.config.get("data")
    if ours != theirs:
        return f"trained on other data than {other.activation}, so the losses do not compare"
    if run.budget != other.budget:
        return (
            f"trained on {run.budget:,} tokens and {other.activation} on {other.budget:,}, so the losses do not compare"
        )
    return ""


def varying(runs: Sequence[RunResult]) -> list[str]:
    """Return the settings in which the runs differ."""
    return _differing([run.settings for run in runs])


def run_folders(path: Path) -> list[Path]:
    """Return the run folders in a folder, resolved, seed-2 before seed-10.

    Hidden folders are left out: a process that died may have left a copy in one.
    """
    return sorted((config.parent.resolve() for config in path.glob("[!.]*/config.toml")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key in which numbers are compared as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def _number(values: dict[str, Any], key: str) -> float | None:
    """Return a finite number, None for anything else."""
    value = values.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None
