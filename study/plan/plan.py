"""A plan: everything that a TOML file and the flags ask for, checked as a whole before anything is trained."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from errors import UserError, unknown
from study.plan.claims import Claim, check_arms, read_claim
from study.plan.config import StudyConfig, Tree, merge
from study.plan.grid import ACTIVATION, axes, grids, is_study, points, run_name, study_section
from training.config import RunConfig, TrainConfig, build

SEED, LR = ("train", "seed"), ("train", "lr")
NOT_OF_A_RUN = ("study", "claim")  # sections that the config of a run does not have


@dataclass(frozen=True)
class PlannedArm:
    """What a study compares: a run with the default seed in place of its own, and how its learning rate is tuned."""

    config: RunConfig
    study: StudyConfig


@dataclass(frozen=True)
class Plan:
    """One run, named "", or the runs of a study by name.

    `arm_of` names the arm of each; messages call it `source`.
    """

    source: str
    tree: Tree
    runs: dict[str, RunConfig]
    arms: dict[str, PlannedArm]
    arm_of: dict[str, str]
    study: StudyConfig
    claim: Claim | None

    @property
    def is_study(self) -> bool:
        """Whether it describes several runs, or the tuning of one."""
        return is_study(self.tree)


def make_plan(tree: Tree, source: str = "the study") -> Plan:
    """Return the plan of a tree of sections: a run for each combination of the listed values.

    Raises:
        UserError: a key or value is not allowed, or two of them do not go together.
    """
    runs: dict[str, RunConfig] = {}
    arms: dict[str, PlannedArm] = {}
    arm_of: dict[str, str] = {}
    for point, sections in points(tree):
        config = build({name: part for name, part in sections.items() if name not in NOT_OF_A_RUN}, source)
        if config in runs.values():  # two grids may describe the same run
            continue
        seedless = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=TrainConfig.seed))
        arm = next((name for name, other in arms.items() if other.config == seedless), None)
        if arm is None:
            shared = {key: value for key, value in point.items() if key != SEED}
            arm = run_name(shared or {ACTIVATION: config.model.activation})
            if arm in arms:
                raise UserError(f"two arms would share the name {arm!r}.")
            arms[arm] = PlannedArm(seedless, study_section(sections, source))
        name = run_name(point)
        if not name and is_study(tree):  # one arm, one seed, tuned: nothing is a list
            name = arm
        if name in runs:
            raise UserError(f"two runs would share the folder name {name!r}.")
        runs[name], arm_of[name] = config, arm
    study = _check_study(tree, runs, source)
    claim = read_claim(tree, source)
    if claim:
        seeds: dict[RunConfig, set[int]] = {arm.config: set() for arm in arms.values()}
        for name, run in runs.items():
            seeds[arms[arm_of[name]].config].add(run.train.seed)
        check_arms(claim, seeds, source)
    return Plan(source, tree, runs, arms, arm_of, study, claim)


def read_plan(path: Path, flags: Tree) -> Plan:
    """Return the plan of a TOML file with the flags above it.

    Raises:
        UserError: as `make_plan`; or a file cannot be read, or a flag goes with studies and this is a single run.
    """
    tree, source = merge(path, flags), f"{path} and the flags" if flags else str(path)
    plan = make_plan(tree, source)
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


def _check_study(tree: Tree, runs: dict[str, RunConfig], source: str) -> StudyConfig:
    """Return the section [study] of a tree, checked against its runs."""
    study = study_section(tree, source)
    if "reference" in tree.get("study", {}):
        allowed = _references(tree, runs)
        if study.reference not in allowed:
            raise UserError(f"{source}: study.reference: " + unknown("reference", study.reference, allowed))
    for grid, _ in grids(tree):
        tuning = study_section(grid, source)
        if not tuning.lr:
            if "bracket" in grid.get("study", {}):
                raise UserError(
                    f"{source}: study.bracket = {tuning.bracket} without study.lr: a bracket lies around the best rate "
                    "of a grid. List rates in study.lr, or leave study.bracket out."
                )
            continue
        if LR in axes(grid):
            raise UserError(f"{source}: train.lr is a list and study.lr tunes it: drop one of the two.")
        seeds = grid.get("train", {}).get("seed", TrainConfig.seed)
        both = set(tuning.tune_seeds) & set(seeds if isinstance(seeds, list) else [seeds])
        if both:
            raise UserError(
                f"{source}: seed {min(both)} is in study.tune_seeds and in train.seed: a tuned arm needs fresh seeds."
            )
    return study


def _references(tree: Tree, runs: dict[str, RunConfig]) -> list[str]:
    """Return what can be a reference, as the table writes it: an activation (`relu`), or `optimizer=sgd`."""
    names = [run.model.activation for run in runs.values()]
    for section, key in dict.fromkeys(key for point, _ in points(tree) for key in point):
        if (section, key) not in (ACTIVATION, SEED):
            names += [f"{key}={getattr(getattr(run, section), key)}" for run in runs.values()]
    return list(dict.fromkeys(names))
