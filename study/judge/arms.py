"""Arms: the runs that differ only in their seeds, and the arm that each is compared with."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from study.judge.results import RunResult, Study, mismatch, varying
from study.judge.statistics import at_best_rate, lowest_three, pseudo_values, vertex
from study.plan.tuning import BARE
from training.config import SECTIONS

Measure = Callable[[RunResult], float | None]
KNOWN = ("sigmoid", "relu", "gelu", "silu", "swiglu")  # the five that everyone knows come first everywhere
MOST_SETTINGS = 2  # beside the activation, in which runs of several studies may differ and still be named by them
ACTIVATION, SEED, LR, TOKENS, FOLDER = "model.activation", "train.seed", "train.lr", "train.tokens", "folder"


@dataclass(frozen=True)
class Arm:
    """What a study compares.

    `parts` holds the settings that distinguish it from the other arms, as its label writes them; the activation is
    always among them. `runs` are one for each seed; `missing` are planned seeds that have no run yet.

    `tuning` are the runs that chose its learning rate, or the middle of its bracket. Of a bracketed arm, `bracket`
    holds the runs at the three rates that count, and `runs` are those at the middle one. `unsettled` is the reason why
    there are no such three.
    """

    parts: dict[str, str]
    runs: tuple[RunResult, ...]
    tuning: tuple[RunResult, ...] = ()
    missing: tuple[int, ...] = ()
    bracket: tuple[RunResult, ...] = ()
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
        # This is the rate at which the figures of the arm are read off, and no run need have trained at it.
        losses = self.losses_by_rate()
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
        # Seeds that were trained on other data or budgets would be noise that the interval takes for that of seeds.
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

    def values(self, measure: Measure) -> dict[int, float]:
        """Return a figure of each seed whose run has it; of a bracketed arm, at the best learning rate.

        There, they are the jackknife's pseudo-values, so that their spread covers the choice of that rate. Sums and
        differences of pseudo-values are those of the sums and differences, and arms pair as usual.
        """
        if not self.bracket:
            figures = {run.seed: measure(run) for run in self.runs}
            return {seed: figure for seed, figure in figures.items() if figure is not None}
        losses, figures_at = self.losses_by_rate(), by_rate(self.bracket, measure)
        # The parabola needs all three rates.
        if figures_at.keys() != losses.keys():
            return {}
        return pseudo_values(lambda seeds: at_best_rate(losses, figures_at, seeds), [run.seed for run in self.runs])

    def losses_by_rate(self) -> dict[float, dict[int, float]]:
        """Return the final losses by learning rate and seed, of the bracket or else of the tuning runs."""
        return by_rate(self.bracket or self.tuning, final_loss)

    def finals(self, metric: str) -> dict[int, float]:
        """Return the final figure of each seed that has one, as `values`."""
        return self.values(lambda run: run.final(metric))

    def cost(self, metric: str) -> float | None:
        """Return the mean of what its runs cost, a figure of their summaries, at the rate of `runs`."""
        # A cost hardly depends on the learning rate. A parabola through costs would only add noise.
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

    @property
    def edge(self) -> bool:
        """Whether its learning rate is the lowest or highest that was tried, so that a better one may lie beyond."""
        rates = {run.lr for run in self.tuning}
        return not self.bracket and len(rates) > 1 and self.lr in (min(rates), max(rates))


def final_loss(run: RunResult) -> float | None:
    """Return the validation loss of a finished run, nats per token."""
    return run.final("val/loss")


def by_rate(runs: Sequence[RunResult], measure: Measure) -> dict[float, dict[int, float]]:
    """Return a figure of runs by learning rate, in order of the rates, and seed.

    A rate at which any seed lacks the figure is left out: the other seeds would flatter it.
    """
    seeds = {run.seed for run in runs}
    table: dict[float, dict[int, float]] = {}
    for run in sorted(runs, key=lambda run: run.lr):
        figures, figure = table.setdefault(run.lr, {}), measure(run)
        if figure is not None:
            figures[run.seed] = figure
    return {rate: figures for rate, figures in table.items() if figures.keys() == seeds}


def make_arms(study: Study) -> list[Arm]:
    """Gather the runs into arms: the five of `KNOWN` first, then the others in order of appearance."""
    # Which seeds are missing is a question to the plans, and so the same for every arm.
    missing = study.missing()
    order = [*KNOWN, *(run.activation for run in study.runs)]
    arms = []
    for parts, runs in sorted(_group(study), key=lambda group: order.index(group[0][ACTIVATION])):
        runs = sorted(runs, key=lambda run: run.seed)
        arm = Arm(parts, tuple(runs), _tuning_of(runs[0], study.tuning), _missing_seeds(runs, missing))
        arms.append(_with_bracket(arm) if runs[0].bracketed else arm)
    return arms


def _with_bracket(arm: Arm) -> Arm:
    """Return an arm whose runs have several learning rates for each seed, with the three rates that count."""
    # A rate counts once all seeds have trained at it. A study that has grown may hold rates of its first seeds alone.
    whole = {} if arm.missing else by_rate(arm.runs, final_loss)
    tried = [run.lr for run in arm.runs]
    three = lowest_three(whole) if whole else None
    # Where a run diverged at a rate between these three, they would be no neighbours.
    if three and not any(three[0] < rate < three[2] for rate in set(tried) - whole.keys()):
        bracket = tuple(run for run in arm.runs if run.lr in three)
        return dataclasses.replace(arm, runs=tuple(run for run in bracket if run.lr == three[1]), bracket=bracket)
    # The curves of such an arm are those of the rate that most seeds have begun.
    most = max(sorted(set(tried)), key=tried.count)
    runs = tuple(run for run in arm.runs if run.lr == most)
    return dataclasses.replace(arm, runs=runs, unsettled=_why_unsettled(arm, whole))


def _why_unsettled(arm: Arm, whole: Iterable[float]) -> str:
    """Return why the runs of an arm hold no bracket, naming those that did not finish."""
    rates = ", ".join(f"{rate:g}" for rate in whole)
    reasons = [f"the lowest mean loss is not inside the rates that all seeds finished ({rates or 'none'})"]
    found = {(run.lr, run.seed): run for run in arm.runs}
    seeds = {run.seed for run in arm.runs} | set(arm.missing)
    for lr in sorted({run.lr for run in arm.runs}):
        for seed in sorted(seeds):
            run = found.get((lr, seed))
            if run is None or run.status != "finished":
                reasons.append(f"seed {seed} at lr {lr:g} {run.progress if run else 'not begun'}")
    return "; ".join(reasons)


def reference_of(arm: Arm, arms: Sequence[Arm], reference: str) -> tuple[Arm | None, str]:
    """Return the arm to compare with, or None and the reason.

    It has the part `reference` (an activation, or one such as `optimizer=adamw`) and equals `arm` in all other parts.
    Data and budget are checked separately, so that the reason can name them.
    """
    if reference in arm.names:
        return arm, ""  # the reference is compared with itself, so that it has a row like any other
    comparable, reasons = [], []
    for other in arms:
        if reference in other.names and _equal_elsewhere(arm, other, reference):
            partners = {run.seed: run for run in other.runs}
            mismatches = [mismatch(run, partners.get(run.seed, other.runs[0])) for run in arm.runs]
            reasons += filter(None, mismatches)
            if not any(mismatches):
                comparable.append(other)
    if not comparable:
        return None, reasons[0] if reasons else f"no {reference} run to compare with, all else equal"
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


def _group(study: Study) -> list[tuple[dict[str, str], list[RunResult]]]:
    """Return the parts and the runs of each arm; no arm has a seed twice, and a bracketed one is of one study.

    Runs of several studies are named by what varies over all of them. Studies that differ in more than `MOST_SETTINGS`
    settings are named by their folder, and by what varies within each.
    """
    homes = study.homes
    # A label of three settings or more can no longer be read.
    unlike = len(homes) > 1 and len({*varying(study.runs)} - {ACTIVATION, SEED}) > MOST_SETTINGS
    fields: dict[Path, list[str]] = {}  # by the home of a run
    for home in homes:
        runs = [run for run in study.runs if run.folder.parent == home] if unlike else study.runs
        fields[home] = _distinguishing(runs, study.named or "")
    # From coarse to fine: arms are split by no more of a run's place than makes each seed unique.
    places: list[Callable[[RunResult], str]] = [lambda run: homes[run.folder.parent], lambda run: str(run.folder)]
    if not unlike:
        places.insert(0, lambda _: "")
    groups: dict[tuple[tuple[str, str], ...], list[RunResult]] = {}
    for place in places:
        groups = {}
        for run in study.runs:
            parts = {ACTIVATION: run.activation}
            own = fields[run.folder.parent]
            for field, name in zip(own, short(own), strict=True):
                parts[field] = f"{name}={run.settings.get(field)}"
            if place(run):
                parts[FOLDER] = place(run)
            groups.setdefault(tuple(parts.items()), []).append(run)
        if all(_is_one_arm(group) for group in groups.values()):
            break
    return [(dict(parts), runs) for parts, runs in groups.items()]


def _distinguishing(runs: Sequence[RunResult], reference: str) -> list[str]:
    """Return the settings, beside activation and seed, that distinguish arms.

    A number with a fraction does not if the other settings determine it, as an optimiser does its momentum. The
    learning rate does not either if the activation determines it, since it may be each arm's own. For other numbers
    that would hide that arms differ in more than the activation. A field that names the study's reference, such as
    `weight_decay=0.1`, always distinguishes.
    """

    def kinds(keys: Iterable[str]) -> int:
        """Count the combinations of values. A value may be a list, so that texts are compared."""
        return len({repr([run.settings.get(key) for key in keys]) for run in runs})

    # An integer, a text or a yes or no is a choice that somebody made, and always worth a place in the label.
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
        if kinds(others) == kinds([*others, number]):
            fields.remove(number)
    return fields


def _is_one_arm(runs: Sequence[RunResult]) -> bool:
    if not any(run.bracketed for run in runs):
        return len({run.seed for run in runs}) == len(runs)
    rates = {(run.seed, run.lr) for run in runs}
    return len(rates) == len(runs) and len({run.folder.parent for run in runs}) == 1


def _missing_seeds(runs: Sequence[RunResult], missing: Iterable[tuple[Path, dict[str, Any]]]) -> tuple[int, ...]:
    """Return the seeds of missing runs that differ from an arm's runs only in the seed, in the arm's own studies."""
    # A planned run names only what varies in its plan, so that an arm of another study could have it too.
    seeds = set()
    for folder, settings in missing:
        others = {key: value for key, value in settings.items() if key != SEED}
        if any(run.folder.parent == folder and run.agrees(others) for run in runs):
            seeds.add(settings[SEED])
    return tuple(sorted(seeds - {run.seed for run in runs}))


def _tuning_of(run: RunResult, tuning: Iterable[RunResult]) -> tuple[RunResult, ...]:
    """Return the tuning runs of an arm: of the same study, and equal in all that tuning leaves alone."""
    # Seed, rate and budget are those of tuning, and a tuning run measures less.
    own = {SEED, LR, TOKENS, *(f"train.{name}" for name in BARE)}
    home = run.folder.parent / "tune"
    found = [trial for trial in tuning if trial.folder.parent == home and own.issuperset(varying([run, trial]))]
    # Losses after different budgets do not compare.
    return tuple(found) if len({trial.budget for trial in found}) == 1 else ()


def _equal_elsewhere(arm: Arm, other: Arm, reference: str) -> bool:
    """Whether two arms are equal in all settings but those that a reference may differ in."""
    differing = set(varying([arm.runs[0], other.runs[0]]))
    if arm.parts.get(FOLDER) == other.parts.get(FOLDER):
        # Here the parts name all that matters: other numbers that differ are determined by them.
        differing &= arm.parts.keys()
    # A tuned arm has its own rate. Data and budget are judged afterwards, with a reason.
    differing -= {SEED, LR, TOKENS} | {key for key, part in other.parts.items() if part == reference}
    return all(key.startswith("data.") for key in differing)
