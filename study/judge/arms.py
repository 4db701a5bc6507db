"""Arms: the runs that only their seeds tell apart, each with the arm that it is compared with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

from study.judge.results import Run, Study, mismatch, varying
from study.plan.tuning import BARE
from training.config import SECTIONS

KNOWN = ("sigmoid", "relu", "gelu", "silu", "swiglu")  # the five that everyone knows come first everywhere
ACTIVATION, SEED, LR, TOKENS, FOLDER = "model.activation", "train.seed", "train.lr", "train.tokens", "folder"


@dataclass(frozen=True)
class Arm:
    """What is compared. `parts` holds what tells it from the other arms, by setting, the activation always among it.

    `missing` are seeds that the study asks for and that have not begun; `tuning` are the runs that chose its rate.
    """

    parts: dict[str, str]
    runs: tuple[Run, ...]
    tuning: tuple[Run, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The name in tables and figures: `gelu`, or `gelu · n_layer=4` where more than the activation varies.

        A choice by name or of yes or no is left out where it is the default.
        """
        return " · ".join(filter(None, (_said(key, part) for key, part in self.parts.items())))

    @property
    def activation(self) -> str:
        """The name in the registry."""
        return self.runs[0].activation

    @property
    def names(self) -> list[str]:
        """What names it as a reference: its parts, but the folder, which may be called anything."""
        return [part for key, part in self.parts.items() if key != FOLDER]

    @property
    def lr(self) -> float:
        """The learning rate of its runs."""
        return self.runs[0].settings.get(LR, float("nan"))

    @property
    def seeds(self) -> int:
        """How many seeds it has, or should have."""
        return len(self.runs) + len(self.missing)

    @cached_property
    def trouble(self) -> str:
        """Why there is no figure for the whole arm, naming the runs at fault; nothing where all is well."""
        wrong = [(run.seed, run.progress) for run in self.runs if run.status != "finished"]
        wrong += [(seed, "not begun") for seed in self.missing]
        wrong += [(run.seed, reason) for run in self.runs if (reason := mismatch(run, self.runs[0]))]
        return "; ".join(f"seed {seed} {what}" if self.seeds > 1 else what for seed, what in wrong)

    @property
    def status(self) -> str:
        """What a table says beside the label of an arm that is not whole; nothing where all is well."""
        done = sum(run.status == "finished" for run in self.runs)
        return "" if done == self.seeds else f"{done} of {self.seeds} seeds" if self.seeds > 1 else self.runs[0].status

    def finals(self, metric: str) -> dict[int, float]:
        """Return the figure of each seed whose run has it."""
        return {run.seed: value for run in self.runs if (value := run.final(metric)) is not None}

    def mean(self, metric: str) -> float | None:
        """Return the mean over all seeds; None unless each has the figure, since the others chose themselves."""
        found = self.finals(metric)
        return fmean(found.values()) if len(found) == self.seeds and not self.trouble else None

    def sd(self, metric: str) -> float | None:
        """Return the standard deviation over seeds; None for one seed, or where there is no mean."""
        return stdev(self.finals(metric).values()) if self.seeds > 1 and self.mean(metric) is not None else None

    @property
    def clipped(self) -> float | None:
        """How often clipping fired, the mean of its runs' shares; None unless each has one."""
        shares = [share for run in self.runs if (share := run.clipped) is not None]
        return fmean(shares) if len(shares) == self.seeds and not self.trouble else None

    def tuned(self) -> dict[float, dict[int, float]]:
        """Return the tuning runs' final losses by learning rate and seed, in order of the rates.

        A rate that not all of its seeds finished at has none: its losses would be those of the seeds that it suits.
        """
        rates: dict[float, list[Run]] = {}
        for run in sorted(self.tuning, key=lambda run: run.settings[LR]):
            rates.setdefault(run.settings[LR], []).append(run)
        return {
            lr: {run.seed: run.summary["val/loss"] for run in runs if run.summary}
            if all(run.status == "finished" for run in runs)
            else {}
            for lr, runs in rates.items()
        }

    @property
    def edge(self) -> bool:
        """Whether its learning rate lies at the edge of the rates tried, so that a better one may lie beyond."""
        tried = self.tuned()
        return len(tried) > 1 and self.lr in (min(tried), max(tried))


def make_arms(study: Study) -> list[Arm]:
    """Gather the runs into arms: the five of `KNOWN` first, then the rest in order of appearance.

    A learning rate is part of the arm: each has its own in a tuned study.
    """
    fields = _telling(study.runs, study.named or "")
    names = dict(zip(fields, short(fields), strict=True))
    groups: dict[tuple[str, ...], list[Run]] = {}
    places = lambda _: "", lambda run: run.folder.parent.name, lambda run: run.folder.parent, lambda run: run.folder
    for place in places:
        groups = _group(study.runs, names, lambda run, place=place: str(place(run)))
        if all(len({run.seed for run in group}) == len(group) for group in groups.values()):
            break
    keys = (ACTIVATION, *fields, FOLDER)
    missing = list(study.missing())
    rank = {name: i for i, name in enumerate(dict.fromkeys([*KNOWN, *(run.activation for run in study.runs)]))}
    arms = []
    for key, group in sorted(groups.items(), key=lambda item: rank[item[0][0]]):
        parts = {field: part for field, part in zip(keys, key, strict=True) if part}
        absent = {
            point[SEED]
            for folder, point in missing
            if folder in {run.folder.parent for run in group}
            and all(group[0].settings.get(field) == value for field, value in point.items() if field != SEED)
        } - {run.seed for run in group}
        runs = sorted(group, key=lambda run: run.seed)
        arms.append(Arm(parts, tuple(runs), _tuning(runs[0], study.tuning), tuple(sorted(absent))))
    return arms


def reference_of(arm: Arm, arms: Sequence[Arm], reference: str) -> tuple[Arm | None, str]:
    """Return the arm to compare with, or None and why none compares.

    It has the part `reference` (an activation, or such as `optimizer=adamw`) and is equal in all others. Data and
    budget are held against it afterwards, so that the reason can name them.
    """
    if reference in arm.names:
        return arm, ""

    def equal(other: Arm) -> bool:
        free = {key for key, part in other.parts.items() if part == reference} | {LR, TOKENS, FOLDER}
        keys = [key for key in arm.parts if key not in free and not key.startswith("data.")]
        return all(arm.parts[key] == other.parts[key] for key in keys)

    found = [other for other in arms if reference in other.names and equal(other)]
    if not found:
        return None, f"no {reference} run to compare with, all else equal"
    pairs = ([mismatch(run, theirs) for run in arm.runs for theirs in other.runs] for other in found)
    why = [next(filter(None, reasons), "") for reasons in pairs]
    fit = [other for other, reason in zip(found, why, strict=True) if not reason]
    if not fit:
        return None, why[0]
    close = [sum(arm.parts.get(key) == other.parts.get(key) for key in (FOLDER, LR)) for other in fit]
    if close.count(max(close)) > 1:
        return None, f"{joined(other.label for other in fit)} would do equally well to compare with"
    return fit[close.index(max(close))], ""


def short(fields: Sequence[str]) -> list[str]:
    """Drop the section of each field wherever the rest is still unique."""
    last = [key.rsplit(".", 1)[-1] for key in fields]
    return [name if last.count(name) == 1 else key for key, name in zip(fields, last, strict=True)]


def joined(names: Iterable[str]) -> str:
    """Join names as in a sentence."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _said(key: str, part: str) -> str:
    """Write a part of a label: `n_layer=4`, but `no ffn_residual` for ffn_residual=False, and nothing for a default."""
    section, _, field = key.partition(".")
    default = getattr(SECTIONS.get(section), field, None)
    name, _, value = part.partition("=")
    if key == ACTIVATION or not isinstance(default, bool | str) or (key.startswith("data.")):
        return part
    if value == str(default):
        return ""
    return {"True": name, "False": f"no {name}"}.get(value, part)


def _telling(runs: Sequence[Run], reference: str) -> list[str]:
    """Return the settings, beside activation and seed, that tell one arm from another.

    A number with a fraction is none where the others tell it already, as an optimiser tells its momentum. That the
    activation tells it is enough for the learning rate alone, which is each arm's own: of any other number it would
    hide that not all else is equal. What names the study's reference, such as `weight_decay=0.1`, always tells.
    """

    def kinds(keys: Iterable[str]) -> int:
        return len({repr([run.settings.get(key) for key in keys]) for run in runs})

    fields = [key for key in varying(runs) if key not in (SEED, ACTIVATION)]
    numbers = [key for key in fields if any(isinstance(run.settings.get(key), float) for run in runs)]
    for number in [key for key in numbers if key.rsplit(".", 1)[-1] != reference.partition("=")[0]]:
        others = [ACTIVATION] * (number == LR) + [key for key in fields if key != number]
        if kinds(others) == kinds([*others, number]):
            fields.remove(number)
    return fields


def _group(runs: Iterable[Run], names: dict[str, str], place: Callable[[Run], str]) -> dict[tuple[str, ...], list[Run]]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts = (f"{name}={run.settings.get(field)}" for field, name in names.items())
        groups.setdefault((run.activation, *parts, place(run)), []).append(run)
    return groups


def _tuning(run: Run, tuning: Iterable[Run]) -> tuple[Run, ...]:
    """Return the tuning runs of a run's arm: of the same study, equal in all but what is a tuning run's own."""
    own = {SEED, LR, TOKENS, *(f"train.{name}" for name in BARE)}

    def key(run: Run) -> dict[str, object]:
        return {field: value for field, value in run.settings.items() if field not in own}

    home = run.folder.parent / "tune"
    found = tuple(other for other in tuning if other.folder.parent == home and key(other) == key(run))
    return found if len({other.budget for other in found}) == 1 else ()
