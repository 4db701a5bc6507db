"""Which metrics a run of an arm writes: found by one training step, so that no list of them has to be kept."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from data.dataset import Dataset
from errors import UserError, unknown
from model.gpt import GPT
from study.plan.claims import settings_of
from study.plan.plan import Plan
from training.config import RunConfig
from training.contents import SCORES
from training.optim import build_optimizers
from training.probes.probes import Probes
from training.step import train_step

ALWAYS = [f"val/{name}" for name in SCORES]
ALWAYS += ["train/loss", "train/lr", "train/skipped", "grad/norm", "perf/tokens_per_s"]


def metric_names(config: RunConfig, data: Dataset) -> set[str]:
    """Return the metrics of a run, measured on the CPU before and after one step."""
    # A step shows what a list would have to follow: each activation, head and probe has metrics of its own.
    model = GPT(config.model, data.tokenizer.n_vocab)
    optimizers = build_optimizers(model, config.train)
    probes = Probes(model, optimizers, data.val, 1, config.train.probes)
    before = probes.measure(0)
    probes.keep_before(1)
    train_step(model, optimizers, data.train.tokens_N, config, 0, 0.0, "fp32")
    probes.follow()
    return {*ALWAYS, *before, *probes.measure(1)}


def check_metrics(plan: Plan, data: Mapping[str, Dataset]) -> None:
    """Raise `UserError` for a prediction about a metric that the runs of its arms do not write.

    `data` holds the prepared data of each arm.
    """
    names: dict[str, set[str]] = {}
    predictions = plan.claim.prediction if plan.claim else ()
    # Most claims are about the loss alone, and need no training step to be checked.
    for prediction in [one for one in predictions if one.metric not in ALWAYS]:
        for _, term in prediction.terms:
            wanted = settings_of(term).items()
            arm = next(name for name, arm in plan.arms.items() if wanted <= arm.settings.items())
            if arm not in names:
                names[arm] = metric_names(plan.arms[arm].config, data[arm])
            if not any(fnmatchcase(name, prediction.metric) for name in names[arm]):
                message = unknown("metric", prediction.metric, sorted(names[arm]))
                raise UserError(f"{plan.source}: {prediction.text}: {message}")
