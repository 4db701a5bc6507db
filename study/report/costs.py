"""What a loss curve can be drawn against beside tokens: FLOPs and seconds of training."""

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean

from study.judge.arms import Arm, joined
from study.judge.curves import training_seconds
from study.judge.effects import Row

COSTS = {"FLOPs": "training FLOPs", "seconds": "seconds of training"}  # name -> title of the x axis
SPEED = "perf/tokens_per_s"
# What of an environment decides the speed of a run, and is no setting that arms may be compared by.
MACHINE = ("device", "device_name", "threads", "ranks", "compiled")
STEADY = 1.25  # largest ratio of the speeds of two runs that compute the same


def comparable_costs(rows: Sequence[Row]) -> tuple[list[str], str]:
    """Return those of `COSTS` in which all runs compare, and a sentence on why the others are left out."""
    if any(row.arm.cost("flops/token") is None for row in rows):
        return [], "FLOPs and seconds are known once every run has finished."
    reason = _why_no_seconds(rows)
    return (["FLOPs"], f"No seconds: {reason}.") if reason else (["FLOPs", "seconds"], "")


def _why_no_seconds(rows: Sequence[Row]) -> str:
    """Return why the seconds of finished runs do not compare; empty if they do."""
    runs = [run for row in rows for run in row.arm.runs]
    if not all(run.curve(SPEED) for run in runs):
        return "not every run has records of its speed"
    environments = [(run.summary or {}).get("environment", {}) for run in runs]
    if any(environment.get("stacked") for environment in environments):
        return "the runs of a stack share each step, so that none has seconds of its own"
    differing = [key for key in MACHINE if len({environment.get(key) for environment in environments}) > 1]
    if differing:
        return f"the runs differ in {joined(differing)}"
    # No record knows what else the machine did. But the runs of an arm compute the same, whatever their seed and rate.
    # Where their speeds differ, so did the load of the machine, and it would decide between arms too.
    for row in rows:
        speeds = [run.final(SPEED) or math.nan for run in chain(row.arm.runs, row.arm.bracket)]
        if max(speeds) / min(speeds) > STEADY:
            ratio = f"{max(speeds) / min(speeds):.1f}"
            return f"the runs of {row.arm.label} compute the same, but their speeds differ by a factor of {ratio}"
    return ""


def cost_of(arm: Arm, cost: str, tokens: Sequence[float]) -> list[float]:
    """Return what its training had cost an arm at each of these tokens, a mean over its seeds."""
    if cost == "FLOPs":
        per_token = arm.cost("flops/token") or math.nan
        return [per_token * seen for seen in tokens]
    of_seeds = [training_seconds(run.curve(SPEED), tokens) for run in arm.runs]
    return [fmean(seconds) for seconds in zip(*of_seeds, strict=True)]
