"""Arms: the runs that differ only in their seeds, and the arm that each is compared with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from study.judge.results import Run, Study, mismatch, varying
from study.judge.statistics import at_best_rate, lowest_three, pseudo_values, vertex
from study.plan.tuning import BARE
from training.config import SECTIONS

KNOWN = ("sigmoid", "relu", "gelu", "silu", "swiglu")  # the five that everyone knows come first everywhere
MOST_SETTINGS = 2  # beside the activation, in which runs of several studies may differ and still be named by them
ACTIVATION, SEED, LR, TOKENS, FOLDER = "model.activation", "train.seed", "train.lr", "train.tokens", "folder"


@dataclass(frozen=True)
class Arm:
    """What a study compares.

    `parts` holds the settings that distinguish it from the other arms, as its label writes them; the activation is
    always among them. `runs` are one for each seed; `missing` are planned seeds that have no run yet.

    `tuning` are the runs that chose its learning rate, or the middle of its bracket. Of a bracketed arm, `bracket`
    holds the runs of each seed at the three rates that count, and `runs` are those at the middle one. `unsettled` is
    the reason why there are no such three.
    """

    parts: dict[str, str]
    runs: tuple[Run, ...]
    tuning: tuple[Run, ...] = ()
    missing: tuple[int, ...] = ()
    bracket: tuple[tuple[Run, ...], ...] = ()
    unsettled: str = ""

    @property
    def label(self) -> str:
        """The name in tables and figures: `gelu`, `gelu · n_layer=4`, or `study/gelu`."""
        parts = [_label_part(key, part) for key, part in self.parts.items() if key != FOLDER]
        name = " · ".join(part for part in parts if part)
        return f"{self.parts[FOLDER]}/{name}" if FOLDER in self.parts else name

    @property
    def activation(self) -> str:
        """The name in the registry."""
        return self.runs[0].activation

    @property
    def names(self) -> list[str]:
        """The parts by which it can be named as a reference. A folder can have any name, so it is not among them."""
        return [part for key, part in self.parts.items() if key != FOLDER]

    @property
    def lr(self) -> float:
        """The learning rate of its runs; of a bracketed arm the best one, between the rates that it trained at."""
        if not self.bracket:
            return self.runs[0].lr
        losses = self.bracket_losses()
        return vertex(list(losses), [fmean(of_seeds.values()) for of_seeds in losses.values()])

    @property
    def seeds(self) -> int:
        """How many seeds it has, with those still missing."""
        return len(self.runs) + len(self.missing)

    @cached_property
    def trouble(self) -> str:
        """Why there is no figure for the whole arm, with the seeds concerned; empty if all is well."""
        if self.unsettled:
            return self.unsettled
        reasons = [(run.seed, run.progress) for run in self.runs if run.status != "finished"]
        reasons += [(seed, "not begun") for seed in self.missing]
        for run in self.runs:
            reason = mismatch(run, self.runs[0])
            if reason:
                reasons.append((run.seed, reason))
        return "; ".join(f"seed {seed} {reason}" if self.seeds > 1 else reason for seed, reason in reasons)

    @property
    def status(self) -> str:
        """What a table shows beside the label of an arm that is not whole; empty if all is well."""
        if self.unsettled:
            return "bracket open"
        finished = sum(run.status == "finished" for run in self.runs)
        if finished == self.seeds:
            return ""
        return f"{finished} of {self.seeds} seeds" if self.seeds > 1 else self.runs[0].status

    def values(self, measure: Callable[[Run], float | None]) -> dict[int, float]:
        """Return a figure of each seed whose run has it; of a bracketed arm, at the best learning rate.

        There, they are the jackknife's pseudo-values, so that their spread covers the choice of that rate. Sums and
        differences of pseudo-values are those of the sums and differences, and arms pair as usual.
        """
        if not self.bracket:
            figures = {run.seed: measure(run) for run in self.runs}
            return {seed: figure for seed, figure in figures.items() if figure is not None}
        losses, figures_at = self.bracket_losses(), self._at_rates(measure)
        seeds = [run.seed for run in self.runs]
        if not all(seed in figures for figures in figures_at.values() for seed in seeds):
            return {}
        return pseudo_values(lambda some: at_best_rate(losses, figures_at, some), seeds)

    def bracket_losses(self) -> dict[float, dict[int, float]]:
        """Return the final losses of the bracket's runs by learning rate and seed, in order of the rates."""
        return self._at_rates(lambda run: run.final("val/loss"))

    def _at_rates(self, measure: Callable[[Run], float | None]) -> dict[float, dict[int, float]]:
        """Return a figure of the bracket's runs by learning rate and seed."""
        table: dict[float, dict[int, float]] = {}
        for runs in self.bracket:
            figures = {run.seed: measure(run) for run in runs}
            table[runs[0].lr] = {seed: figure for seed, figure in figures.items() if figure is not None}
        return table

    def finals(self, metric: str) -> dict[int, float]:
        """Return the final figure of each seed that has one, as `values`."""
        return self.values(lambda run: run.final(metric))

    def cost(self, metric: str) -> float | None:
        """Return the mean of what its runs cost, a figure of their summaries, at the rate of `runs`."""
        figures = [run.final(metric) for run in self.runs]
        whole = [figure for figure in figures if figure is not None]
        return fmean(whole) if len(whole) == self.seeds else None

    def mean(self, metric: str) -> float | None:
        """Return the mean over all seeds. None unless each has the figure: a mean of the others would be biased."""
        figures = self.finals(metric)
        return fmean(figures.values()) if len(figures) == self.seeds and not self.trouble else None

    def sd(self, metric: str) -> float | None:
        """Return the standard deviation over seeds; None for one seed, or where there is no mean."""
        return stdev(self.finals(metric).values()) if self.seeds > 1 and self.mean(metric) is not None else None

    @property
    def clipped(self) -> float | None:
        """Share of steps whose gradient was clipped, the mean over all seeds; None unless each has one."""
        shares = [run.clipped for run in self.runs if run.clipped is not None]
        return fmean(shares) if len(shares) == self.seeds and not self.trouble else None

    def tuned(self) -> dict[float, dict[int, float]]:
        """Return the final losses of the tuning runs by learning rate and seed, in order of the rates.

        A rate at which a seed did not finish has no losses: those of the other seeds would flatter it.
        """
        trials: dict[float, list[Run]] = {}
        for run in sorted(self.tuning, key=lambda run: run.lr):
            trials.setdefault(run.lr, []).append(run)
        losses: dict[float, dict[int, float]] = {}
        for lr, runs in trials.items():
            found = {run.seed: run.final("val/loss") for run in runs}
            whole = all(loss is not None for loss in found.values())
            losses[lr] = {seed: loss for seed, loss in found.items() if loss is not None} if whole else {}
        return losses

    @property
    def edge(self) -> bool:
        """Whether its learning rate is the lowest or highest that was tried, so that a better one may lie beyond."""
        rates = self.tuned()
        return not self.bracket and len(rates) > 1 and self.lr in (min(rates), max(rates))


def make_arms(study: Study) -> list[Arm]:
    """Gather the runs into arms: the five of `KNOWN` first, then the others in order of appearance.

    Runs of one arm may have different learning rates only if the activation explains them, as in a tuned study. Arms of
    studies that differ in more than `MOST_SETTINGS` settings are named by their study and by what varies within it.
    """
    fields, homes = _distinguishing(study.runs, study.named or ""), study.homes
    differing = set(varying(study.runs)) - {ACTIVATION, SEED}
    if len(homes) > 1 and len(differing) > MOST_SETTINGS:
        groups = []
        for home, name in homes.items():
            runs = [run for run in study.runs if run.folder.parent == home]
            own = _distinguishing(runs, study.named or "")
            groups += [(parts | {FOLDER: name}, members) for parts, members in _group(runs, own)]
    else:
        groups = _group(study.runs, fields)
    # Which seeds are missing is a question to the plans, and so the same for every arm.
    missing = study.missing()
    order = [*KNOWN, *(run.activation for run in study.runs)]
    arms = []
    for parts, runs in sorted(groups, key=lambda group: order.index(group[0][ACTIVATION])):
        runs = sorted(runs, key=lambda run: run.seed)
        tuning, absent = _tuning_of(runs[0], study.tuning), _missing_seeds(runs, missing)
        if runs[0].bracketed:
            arms.append(_bracketed_arm(parts, runs, tuning, absent))
        else:
            arms.append(Arm(parts, tuple(runs), tuning, absent))
    return arms


def _bracketed_arm(
    parts: dict[str, str], runs: Sequence[Run], tuning: tuple[Run, ...], missing: tuple[int, ...]
) -> Arm:
    """Return the arm of runs that have several learning rates for each seed."""
    by_rate: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.lr):
        by_rate.setdefault(run.lr, []).append(run)
    seeds = {run.seed for run in runs} | set(missing)
    # A rate counts once all seeds have trained at it. A study that has grown may hold rates of its first seeds alone.
    whole: dict[float, dict[int, float]] = {}
    for rate, found in by_rate.items():
        losses = {run.seed: run.final("val/loss") for run in found}
        finished = {seed: loss for seed, loss in losses.items() if loss is not None}
        if finished.keys() == seeds:
            whole[rate] = finished
    three = lowest_three(whole) if len(whole) >= 3 else None
    # Where a run diverged at a rate between these three, they would be no neighbours.
    if three and not any(three[0] < rate < three[2] for rate in by_rate.keys() - whole.keys()):
        middle, bracket = three[1], tuple(tuple(by_rate[rate]) for rate in three)
        return Arm(parts, tuple(by_rate[middle]), tuning, missing, bracket)
    most = max(by_rate, key=lambda rate: len(by_rate[rate]))
    return Arm(parts, tuple(by_rate[most]), tuning, missing, unsettled=_why_unsettled(by_rate, seeds, whole))


def _why_unsettled(by_rate: dict[float, list[Run]], seeds: set[int], whole: Iterable[float]) -> str:
    """Return why the runs at these rates hold no bracket, naming those that did not finish."""
    open_runs = []
    for rate, runs in by_rate.items():
        begun = {run.seed: run for run in runs}
        for seed in sorted(seeds):
            if seed not in begun:
                open_runs.append(f"seed {seed} at lr {rate:g} not begun")
            elif begun[seed].status != "finished":
                open_runs.append(f"seed {seed} at lr {rate:g} {begun[seed].progress}")
    rates = ", ".join(f"{rate:g}" for rate in sorted(whole))
    reason = f"the lowest mean loss is not inside the rates that all seeds finished ({rates or 'none'})"
    return "; ".join([reason, *open_runs])


def reference_of(arm: Arm, arms: Sequence[Arm], reference: str) -> tuple[Arm | None, str]:
    """Return the arm to compare with, or None and the reason.

    It has the part `reference` (an activation, or one such as `optimizer=adamw`) and equals `arm` in all other parts.
    Data and budget are checked separately, so that the reason can name them.
    """
    if reference in arm.names:
        return arm, ""  # the reference is compared with itself, so that it has a row like any other
    candidates = [other for other in arms if reference in other.names and _equal_elsewhere(arm, other, reference)]
    if not candidates:
        return None, f"no {reference} run to compare with, all else equal"
    reasons = [_arms_mismatch(arm, other) for other in candidates]
    comparable = [other for other, reason in zip(candidates, reasons, strict=True) if not reason]
    if not comparable:
        return None, reasons[0]
    # Of several, the arm of the same study and at the same learning rate is the nearest.
    nearness = [sum(arm.parts.get(key) == other.parts.get(key) for key in (FOLDER, LR)) for other in comparable]
    if nearness.count(max(nearness)) > 1:
        return None, f"{joined(other.label for other in comparable)} would do equally well to compare with"
    return comparable[nearness.index(max(nearness))], ""


def short(fields: Sequence[str]) -> list[str]:
    """Drop the section of each field wherever the rest is still unique."""
    names = [field.rsplit(".", 1)[-1] for field in fields]
    return [name if names.count(name) == 1 else field for field, name in zip(fields, names, strict=True)]


def joined(names: Iterable[str]) -> str:
    """Join names as in a sentence."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _label_part(key: str, part: str) -> str:
    """Write a part for a label: `n_layer=4`, `no ffn_residual` for ffn_residual=False; empty for a default choice.

    Choices are fields of text or of yes and no. A number stays, default or not, and so does whatever names the data.
    """
    section, _, field = key.partition(".")
    default = getattr(SECTIONS.get(section), field, None)
    name, _, value = part.partition("=")
    if key == ACTIVATION or section == "data" or not isinstance(default, bool | str):
        return part
    if value == str(default):
        return ""
    return {"True": name, "False": f"no {name}"}.get(value, part)


def _distinguishing(runs: Sequence[Run], reference: str) -> list[str]:
    """Return the settings, beside activation and seed, that distinguish arms.

    A number with a fraction does not if the other settings determine it, as an optimiser does its momentum. That the
    activation determines it is enough only for the learning rate, which may be each arm's own; for any other number
    it would hide that arms differ in more than the activation. A field that names the study's reference, such as
    `weight_decay=0.1`, always distinguishes.
    """
    fields = [key for key in varying(runs) if key not in (SEED, ACTIVATION)]
    named = reference.partition("=")[0]
    for number in list(fields):
        fractional = any(isinstance(run.settings.get(number), float) for run in runs)
        if not fractional or number.rsplit(".", 1)[-1] == named:
            continue
        others = [key for key in fields if key != number]
        if number == LR:
            others.append(ACTIVATION)
        # The number is determined by the others if it adds no combination to theirs.
        if _count_kinds(runs, others) == _count_kinds(runs, [*others, number]):
            fields.remove(number)
    return fields


def _count_kinds(runs: Iterable[Run], fields: Iterable[str]) -> int:
    """Return how many combinations of values these fields have. Values may be lists, so that their text is compared."""
    fields = list(fields)
    return len({repr([run.settings.get(field) for field in fields]) for run in runs})


# Where a run lies, from coarse to fine: arms are split by no more of it than makes each seed unique. Of two studies of
# one config in a/ and b/, that is the name of the folder; of a/quick and b/quick, it is the path.
PLACES: tuple[Callable[[Run], str | Path], ...] = (
    lambda _: "",
    lambda run: run.folder.parent.name,
    lambda run: run.folder.parent,
    lambda run: run.folder,
)


def _group(runs: Sequence[Run], fields: Sequence[str]) -> list[tuple[dict[str, str], list[Run]]]:
    """Return the parts and the runs of each arm; no arm has a seed twice, and a bracketed one is of one study."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for place in PLACES:
        groups = {}
        for run in runs:
            parts = [(ACTIVATION, run.activation)]
            for field, name in zip(fields, short(fields), strict=True):
                parts.append((field, f"{name}={run.settings.get(field)}"))
            if place(run):
                parts.append((FOLDER, str(place(run))))
            groups.setdefault(tuple(parts), []).append(run)
        if all(_is_one_arm(group) for group in groups.values()):
            break
    return [(dict(parts), group) for parts, group in groups.items()]


def _is_one_arm(runs: Sequence[Run]) -> bool:
    if not any(run.bracketed for run in runs):
        return len({run.seed for run in runs}) == len(runs)
    rates = {(run.seed, run.lr) for run in runs}
    return len(rates) == len(runs) and len({run.folder.parent for run in runs}) == 1


def _missing_seeds(runs: Sequence[Run], missing: Iterable[tuple[Path, dict[str, Any]]]) -> tuple[int, ...]:
    """Return the seeds of missing runs that differ from an arm's runs only in the seed, in the arm's own studies."""
    seeds = set()
    for folder, settings in missing:
        others = {key: value for key, value in settings.items() if key != SEED}
        if any(run.folder.parent == folder and run.agrees(others) for run in runs):
            seeds.add(settings[SEED])
    return tuple(sorted(seeds - {run.seed for run in runs}))


def _tuning_of(run: Run, tuning: Iterable[Run]) -> tuple[Run, ...]:
    """Return the tuning runs of an arm: of the same study, and equal in all that tuning leaves alone."""
    own = {SEED, LR, TOKENS, *(f"train.{name}" for name in BARE)}
    settings = {key: value for key, value in run.settings.items() if key not in own}
    found = []
    for trial in tuning:
        same_study = trial.folder.parent == run.folder.parent / "tune"
        if same_study and settings == {key: value for key, value in trial.settings.items() if key not in own}:
            found.append(trial)
    # Losses after different budgets do not compare.
    return tuple(found) if len({trial.budget for trial in found}) == 1 else ()


def _equal_elsewhere(arm: Arm, other: Arm, reference: str) -> bool:
    """Whether two arms are equal in all parts but those that a reference may differ in."""
    # A tuned arm has its own rate. Data, budget and folder are judged afterwards, with a reason or by nearness.
    free = {LR, TOKENS, FOLDER}
    free |= {key for key, part in other.parts.items() if part == reference}
    keys = arm.parts.keys() | other.parts.keys()
    if arm.parts.get(FOLDER) != other.parts.get(FOLDER):
        # The parts of another study's arm need not name all that differs.
        keys |= set(varying([arm.runs[0], other.runs[0]])) - {SEED}
        ours, theirs = ({**one.runs[0].settings, **one.parts} for one in (arm, other))
    else:
        ours, theirs = arm.parts, other.parts
    return all(ours.get(key) == theirs.get(key) for key in keys - free if not key.startswith("data."))


def _arms_mismatch(arm: Arm, other: Arm) -> str:
    """Return why the losses of two arms do not compare, or an empty string."""
    partners = {theirs.seed: theirs for theirs in other.runs}
    reasons = [mismatch(run, partners.get(run.seed, other.runs[0])) for run in arm.runs]
    return next((reason for reason in reasons if reason), "")
