"""A plan: everything that a TOML file and the flags ask for, checked as a whole before anything is trained."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError, unknown
from study.plan.claims import Claim, read_claim, settings_of
from study.plan.config import ALL_SECTIONS, StudyConfig, Tree, flatten, merge
from study.plan.grid import ACTIVATION, is_study, points, run_name
from training.config import RunConfig, TrainConfig, build_sections
from training.config import tree as sections_of

SEED = ("train", "seed")


@dataclass(frozen=True)
class PlannedArm:
    """What a study compares: runs that differ only in their seed, by name, and how their learning rate is tuned.

    `config` is that of the runs with the default seed in place of their own.
    """

    config: RunConfig
    study: StudyConfig
    runs: dict[str, RunConfig]

    @property
    def settings(self) -> dict[str, Any]:
        """The config as `section.field`."""
        return flatten(sections_of(self.config))


@dataclass(frozen=True)
class Plan:
    """One run, named "", or the arms of a study by name; messages call it `source`."""

    # The tree is kept beside what was made of it: study.toml holds it, and a larger plan is compared with it.
    source: str
    tree: Tree
    arms: dict[str, PlannedArm]
    study: StudyConfig
    claim: Claim | None

    @property
    def runs(self) -> dict[str, RunConfig]:
        """The runs of all arms by name."""
        return {name: run for arm in self.arms.values() for name, run in arm.runs.items()}

    @property
    def is_study(self) -> bool:
        """Whether it describes several runs, or the tuning of one."""
        return is_study(self.tree)


def make_plan(tree: Tree, source: str = "the study") -> Plan:
    """Return the plan of a tree of sections: a run for each combination of the listed values.

    Raises:
        UserError: a key or value is not allowed, or two of them do not go together.
    """
    arms: dict[str, PlannedArm] = {}
    for point, sections in points(tree, source):
        parts = build_sections(sections, ALL_SECTIONS, source)
        study = parts.pop("study", StudyConfig())
        config = RunConfig(**parts)
        # The default seed stands in for all of an arm's seeds, so that the arm's config can be compared.
        seedless = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=TrainConfig.seed))
        if study.lr and config.train.seed in study.tune_seeds:
            # A seed that helped to choose the rate would flatter it.
            raise UserError(
                f"{source}: seed {config.train.seed} is in study.tune_seeds and in train.seed: a tuned arm needs fresh "
                "seeds."
            )
        # Two grids may describe the same arm, and even the same run.
        name = next((name for name, arm in arms.items() if arm.config == seedless), None)
        if name is None:
            shared = {key: value for key, value in point.items() if key != SEED}
            name = run_name(shared or {ACTIVATION: config.model.activation})
            if name in arms:
                raise UserError(f"two arms would share the name {name!r}.")
            arms[name] = PlannedArm(seedless, study, {})
        if config not in arms[name].runs.values():
            # A study in which nothing is a list is one arm of one seed, tuned. Its run has the arm's name.
            arms[name].runs[run_name(point) or (name if is_study(tree) else "")] = config
    study = build_sections({"study": tree.get("study", {})}, ALL_SECTIONS, source)["study"]
    names = [name for arm in arms.values() for name in arm.runs]
    for name in names:
        if names.count(name) > 1:  # one run would overwrite the other
            raise UserError(f"two runs would share the folder name {name!r}.")
    plan = Plan(source, tree, arms, study, read_claim(tree, source))
    _check_reference(plan)
    _check_claim(plan)
    return plan


def read_plan(path: Path, flags: Tree) -> Plan:
    """Return the plan of a TOML file with the flags above it.

    Raises:
        UserError: as `make_plan`; or a file cannot be read, or a flag goes with studies and this is a single run.
    """
    plan = make_plan(merge(path, flags), f"{path} and the flags" if flags else str(path))
    if "study" in flags and not plan.is_study:
        flag = next(iter(flags["study"]))
        raise UserError(f"--study.{flag} goes with a study, but {path} is a single run.")
    return plan


def claims_in(folder: Path) -> dict[Path, Claim]:
    """Return the claims among the studies in a folder, in order of their names, or that of a study's own folder.

    Raises:
        UserError: two of them have one name.
    """
    own = folder / "study.toml"
    claims: dict[Path, Claim] = {}
    for path in [own] if own.exists() else sorted(folder.glob("*/study.toml")):
        # The runs are not planned again: that would need the plugins of their activations.
        claim = read_claim(merge(path, {}), str(path))
        if claim and claim.name in [other.name for other in claims.values()]:
            raise UserError(f"{folder}: two claims have the name {claim.name}.")
        if claim:
            claims[path.parent] = claim
    return claims


def _check_reference(plan: Plan) -> None:
    """Raise `UserError` if the plan names a reference that no arm is: an activation, or such as `optimizer=sgd`."""
    if "reference" not in plan.tree.get("study", {}):
        return
    # The names are those that the table will show: study/judge/arms.py writes its parts in the same way.
    runs = plan.runs.values()
    names = [run.model.activation for run in runs]
    for section, key in dict.fromkeys(key for point, _ in points(plan.tree, plan.source) for key in point):
        if (section, key) not in (ACTIVATION, SEED):
            names += [f"{key}={getattr(getattr(run, section), key)}" for run in runs]
    if plan.study.reference not in names:
        message = unknown("reference", plan.study.reference, dict.fromkeys(names))
        raise UserError(f"{plan.source}: study.reference: {message}")


def _check_claim(plan: Plan) -> None:
    """Raise `UserError` unless each term of the claim describes exactly one arm, and the terms of a prediction pair."""
    for prediction in plan.claim.prediction if plan.claim else ():
        where = f"{plan.source}: {prediction.text}"
        # Effects are paired by seed, so that a seed which only one arm has would be lost.
        seeds: list[list[int]] = []
        for _, term in prediction.terms:
            wanted = settings_of(term)
            found = [arm for arm in plan.arms.values() if wanted.items() <= arm.settings.items()]
            if len(found) != 1:
                raise UserError(f"{where}: {wanted} describes {len(found)} arms of it, not one.")
            seeds.append(sorted(run.train.seed for run in found[0].runs.values()))
            if seeds[-1] != seeds[0]:
                raise UserError(
                    f"{where}: the seeds of its arms do not pair: {seeds[0]} and {seeds[-1]}. Give them the same "
                    "train.seed."
                )
