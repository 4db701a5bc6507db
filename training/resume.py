"""Going on: a run from its newest checkpoint, bit for bit where it can be."""

from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from data.dataset import Dataset
from errors import UserError
from model.gpt import GPT
from training import checkpoint
from training.parallel import Alone
from training.probes.probes import Probes


def resume(
    folder: Path,
    model: GPT,
    optimizers: list[Optimizer],
    probes: Probes,
    data: Dataset,
    env: dict[str, Any],
    ranks: Alone,
) -> tuple[bool, dict[str, Any]]:
    """Load the newest checkpoint; return whether there is one, and what a run goes on from beside its tensors.

    Raises:
        UserError: it was trained on other data, or is not one that such a run saved.
    """
    state: dict[str, Any] = {"step": 0, "offset": 0, "time": 0.0, "train_seconds": 0.0, "skipped": 0}
    state |= {"val": {}, "wandb_id": None, "wandb_best": None}
    newest = ranks.first(lambda: checkpoint.newest(folder / "checkpoints"))
    if newest is None:
        return False, state
    state |= checkpoint.read_state(Path(newest))
    _check_same(state, data, env)
    checkpoint.load_weights(Path(newest), model, ranks)
    probes.load(checkpoint.load_optimizers(Path(newest), model, optimizers, ranks))
    return True, state


def _check_same(state: dict[str, Any], data: Dataset, env: dict[str, Any]) -> None:
    """Refuse to go on with other data, and warn where results will no longer be equal bit for bit."""
    if state.get("fingerprint") != data.fingerprint:
        raise UserError("the checkpoint was trained on other data: the corpus or its tokens have changed since.")
    before = {"ranks": 1, "compiled": False, "stacked": False} | state.get("environment", {})
    for key in ("threads", "ranks", "compiled", "stacked", "device_name", "torch", "precision"):
        if before.get(key) != env[key]:
            print(f"warning: {key} was {before.get(key)}, is {env[key]}: not bitwise the same from here on")
