"""Checkpoints: safetensors and JSON, a SHA-256 manifest that is verified on load. Nothing is ever unpickled."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from data.tokenizer import Tokenizer
from errors import UserError
from files import PARTIAL, sha256_of, write_folder, writing
from training.optim import slot_names
from training.wandb_mirror import ID

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json")
DROPPED = ".dropped-"  # begins the name of a checkpoint that is being deleted

# What state.json holds beside the config, which is there for readers. Everything has a default but `step`.
STATE: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "offset": int,
    "skipped": int,
    "time": (int, float),
    "train_seconds": (int, float),
    "val": dict,
    "environment": dict,
    "fingerprint": str,
    "wandb_id": (str, NoneType),
    "wandb_best": (int, float, NoneType),
}


class Damaged(Exception):
    """A checkpoint that does not match its manifest; the message names the file."""


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: list[Optimizer],
    state: dict[str, Any],
    tokenizer: Tokenizer,
    keep: int,
    probes: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `folder/step-<step>` whole or not at all, then delete all but the `keep` newest checkpoints.

    `state` is what else an exact resume needs, as JSON, and `probes` as tensors.

    Raises:
        UserError: it cannot be written; the checkpoints before it stay.
    """
    target = folder / f"step-{step:08d}"
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    others = _optimizer_tensors(model, optimizers)
    others |= {f"probes/{name}": tensor for name, tensor in (probes or {}).items()}
    with writing(target, sum(tensor.nbytes for tensor in [*weights.values(), *others.values()])):
        folder.mkdir(exist_ok=True)
        for leftover in [*folder.glob(f"{DROPPED}*"), *folder.glob(f".*{PARTIAL}")]:
            shutil.rmtree(leftover)  # left by a process that was killed while it deleted or wrote
        with write_folder(target) as partial:
            save_tensors(weights, partial / "model.safetensors")
            save_tensors(others, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
            tokenizer.save(partial / "tokenizer.json")
            manifest = {name: sha256_of(partial / name) for name in FILES}
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _prune(folder, target, keep)
    return target


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors. What the disk refuses is an `OSError`, as everywhere else."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as fault:
        number = re.search(r"\(os error (\d+)\)", str(fault))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from fault


def _optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for key, (optimizer, parameter, slot) in _slots(model, optimizers).items():
        if optimizer.state:  # before the first step an optimiser has no state at all
            # A parameter that no formula reads gets no gradient, and its optimiser keeps nothing for it.
            slots = optimizer.state.get(parameter) or {slot: _empty(parameter, slot)}
            tensors[key] = slots[slot].contiguous()
    return tensors


def _slots(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, tuple[Optimizer, Tensor, str]]:
    """Return what the optimisers keep for each parameter, by the name of its tensor in a checkpoint."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for slot in slot_names(optimizer):
                    found[f"{names[id(parameter)]}/{slot}"] = optimizer, parameter, slot
    return found


def _empty(parameter: Tensor, slot: str) -> Tensor:
    """Return the tensor of a parameter that has taken no step. `step` is AdamW's count, one number."""
    return torch.zeros(()) if slot == "step" else torch.zeros_like(parameter)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first; a copy under another name is none."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def _prune(folder: Path, target: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, `target` the newest of them."""
    paths = _checkpoints(folder)
    before = [path for path in paths if path.name < target.name]
    # A later one is damaged, or this step would not have been trained again.
    later = [path for path in paths if path.name > target.name]
    for old in before[: max(len(before) - keep + 1, 0)] + later:
        # Renamed first, so that whoever reads it finds all of it or nothing.
        dropped = old.with_name(DROPPED + old.name)
        os.replace(old, dropped)
        shutil.rmtree(dropped)


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint in `folder`, or None if there is none at all.

    A damaged one is named on standard error, and the one before it is used.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    while paths := _checkpoints(folder)[::-1]:
        problems = []
        for path in paths:
            try:
                verify(path)
            except Damaged as error:
                problems.append(str(error))
                continue
            for problem in problems:
                print(f"warning: {problem}; using {path.name}", file=sys.stderr, flush=True)
            return path
        # One that has disappeared was deleted by its run, which goes on: look again.
        if all(os.path.lexists(path) for path in paths):
            found = "; ".join(problems)
            raise UserError(f"no intact checkpoint in {folder}: {found}. Delete the folder to start over.")
    return None


def verify(path: Path) -> None:
    """Raise `Damaged` unless the files of a checkpoint are those that its manifest lists."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path.name}: manifest.json is missing or damaged ({type(error).__name__})") from None
    if not isinstance(manifest, dict) or sorted(manifest) != sorted(FILES):
        raise Damaged(f"{path.name}: manifest.json does not list the files of a checkpoint")
    for name in FILES:
        with suppress(OSError):
            if (path / name).is_file() and sha256_of(path / name) == manifest[name]:
                continue
        raise Damaged(f"{path.name}: {name} is missing or does not match manifest.json")


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Files that match their manifest may still be foreign: say so without a traceback."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as fault:
        raise UserError(f"{path} is not a checkpoint of this run ({type(fault).__name__}: {fault}).") from fault


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a verified checkpoint, `step` among it.

    Raises:
        UserError: it is not one that a run saved.
    """
    with _as_user_error(path):
        state = json.loads((path / "state.json").read_text())
        wrong = [key for key, kind in STATE.items() if key in state and not isinstance(state[key], kind)]
        if not ID.fullmatch(state.get("wandb_id") or "none"):
            wrong.append("wandb_id")
        if wrong or state["step"] != int(path.name.removeprefix("step-")) or state.get("offset", 0) < 0:
            raise ValueError(f"state.json: {', '.join(wrong) or 'step or offset'}")
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a verified checkpoint into `model`, every one of them.

    Raises:
        UserError: it does not hold the weights of such a model.
    """
    with _as_user_error(path):
        tensors = load_file(path / "model.safetensors")
        _check_tensors(tensors, model.state_dict())
        model.load_state_dict(tensors)


def load_training_state(
    path: Path, model: nn.Module, optimizers: list[Optimizer], probes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Restore the optimisers' state and torch's random state, and return the tensors of the probes.

    `probes` are those of a fresh run, which the tensors have to match.

    Raises:
        UserError: it does not hold the state of such optimisers and probes.
    """
    with _as_user_error(path):
        tensors = load_file(path / "optimizer.safetensors")
        random = {name: tensors.pop(name) for name in ("rng.cpu", "rng.cuda") if name in tensors}
        found = {name: tensors.pop(f"probes/{name}") for name in probes if f"probes/{name}" in tensors}
        _check_tensors(found, probes)
        slots = _slots(model, optimizers)
        empty = {key: _empty(parameter, slot) for key, (_, parameter, slot) in slots.items()}
        _check_tensors(tensors, empty if tensors else {})
        for key, tensor in tensors.items():
            optimizer, parameter, slot = slots[key]
            optimizer.state[parameter][slot] = tensor.to(parameter.device)
        torch.set_rng_state(random["rng.cpu"])
        if "rng.cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["rng.cuda"])
    return found


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless names, shapes and dtypes are exactly those expected."""
    if different := found.keys() ^ expected.keys():
        raise ValueError(f"missing or unknown tensors: {', '.join(sorted(different)[:3])}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(
                f"{name} has the shape {list(tensor.shape)} and the type {tensor.dtype}, "
                f"not {list(expected[name].shape)} and {expected[name].dtype}"
            )
