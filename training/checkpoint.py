"""Checkpoints: safetensors and JSON, a SHA-256 manifest written last, verified on load. Nothing is ever unpickled."""

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

from data.assets import sha256_of
from errors import UserError
from training.folder import writing
from training.parallel import ALONE, Alone
from training.wandb_mirror import ID

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json")
STATE: dict[str, type | tuple[type, ...]] = {  # what `state.json` may hold under these keys
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
    tokenizer: Any,
    keep: int,
    probes: Mapping[str, Tensor] | None = None,
    ranks: Alone = ALONE,
) -> Path:
    """Write `folder/step-<step>` whole or not at all, then drop all but the `keep` newest checkpoints.

    `state` is what else an exact resume needs, as JSON, and `probes` as tensors. `tokenizer` writes itself with
    `save(path)`. The first of the `ranks` writes; all have to call.

    Raises:
        UserError: it cannot be written; the checkpoints before it stay.
    """
    weights, followed = ranks.gathered(_weights(model)), {f"probes/{name}": t for name, t in (probes or {}).items()}
    others = ranks.gathered(_optimizer_tensors(model, optimizers)) | followed
    target, partial = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    if not ranks.main:
        return target
    with writing(target, sum(tensor.nbytes for tensor in [*weights.values(), *others.values()])):
        folder.mkdir(exist_ok=True)  # its run is gone if there is none above
        for leftover in [*folder.glob(".writing-*"), *folder.glob(".dropped-*")]:  # of a process that died while saving
            shutil.rmtree(leftover)
        try:
            partial.mkdir()
            save_tensors(weights, partial / "model.safetensors")
            save_tensors(others, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
            tokenizer.save(partial / "tokenizer.json")
            manifest = {name: sha256_of(partial / name) for name in FILES}
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in [*partial.iterdir(), partial]:
                _fsync(path)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # of a failure; there is none where all went well
        _fsync(folder)
        _prune(folder, target, keep)
    return target


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first; a copy that somebody made under another name is none."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def _prune(folder: Path, target: Path, keep: int) -> None:
    """Drop all but the `keep` newest checkpoints, `target` the newest of them."""
    others = [path for path in _checkpoints(folder) if path != target]
    before = [path for path in others if path.name < target.name]
    later = [path for path in others if path.name > target.name]  # damaged, or this step would not have been trained
    for old in before[: max(len(before) - keep + 1, 0)] + later:
        dropped = old.with_name(old.name.replace("step", ".dropped"))
        os.replace(old, dropped)  # whoever reads it finds all of it or nothing
        shutil.rmtree(dropped)


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint in `folder`, or None if there is none at all.

    A damaged one is named on standard error and the one before it is used.

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
        if all(map(os.path.lexists, paths)):  # else its run goes on and has dropped one meanwhile: look again
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
        if (path / name).is_symlink():
            raise Damaged(f"{path.name}: {name} is a link")
        with suppress(OSError):
            if (path / name).is_file() and sha256_of(path / name) == manifest[name]:
                continue
        raise Damaged(f"{path.name}: {name} is missing or does not match manifest.json")


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a verified checkpoint, `step` among it.

    Raises:
        UserError: it is not one that a run saved.
    """
    with _foreign(path):
        state = json.loads((path / "state.json").read_text())
        wrong = [key for key, kind in STATE.items() if key in state and not isinstance(state[key], kind)]
        if not ID.fullmatch(state.get("wandb_id") or "none"):
            wrong.append("wandb_id")
        if wrong or state["step"] != int(path.name.removeprefix("step-")) or state.get("offset", 0) < 0:
            raise ValueError(f"state.json: {', '.join(wrong) or 'step or offset'}")
    return state


def load_weights(path: Path, model: nn.Module, ranks: Alone = ALONE) -> None:
    """Load the weights of a verified checkpoint into `model`, every one of them.

    Raises:
        UserError: it does not hold the weights of such a model.
    """
    with _foreign(path):
        tensors, own = load_file(path / "model.safetensors"), model.state_dict()
        if other := [name for name, tensor in tensors.items() if name in own and tensor.dtype != own[name].dtype]:
            raise ValueError(f"{other[0]} is of the type {tensors[other[0]].dtype}")
        model.load_state_dict({name: ranks.part(t, own[name]) if name in own else t for name, t in tensors.items()})


def load_optimizers(
    path: Path, model: nn.Module, optimizers: list[Optimizer], ranks: Alone = ALONE
) -> dict[str, Tensor]:
    """Restore the optimisers' state and torch's random state, and return the tensors of the probes.

    Raises:
        UserError: it does not hold the state of such optimisers.
    """
    with _foreign(path):
        return _load_optimizers(path, model, optimizers, ranks)


def _load_optimizers(path: Path, model: nn.Module, optimizers: list[Optimizer], ranks: Alone) -> dict[str, Tensor]:
    tensors = load_file(path / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("rng.cpu"))
    if "rng.cuda" in tensors:
        state = tensors.pop("rng.cuda")
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters, probes = dict(model.named_parameters()), {}
    for key, tensor in tensors.items():
        name, slot = key.rsplit("/", 1)
        if name == "probes":
            probes[slot] = tensor
            continue
        parameter = parameters[name]
        if tensor.shape not in ((), parameter.shape) or not tensor.is_floating_point():
            raise ValueError(f"{key} has the shape {[*tensor.shape]} and the type {tensor.dtype}")
        # AdamW counts its steps on the device that the fused kernel reads them from
        owner[id(parameter)].state[parameter][slot] = ranks.part(tensor, parameter)
    return probes


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Files that match their manifest may still be of another hand than ours: say so without a traceback."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as fault:
        raise UserError(f"{path} is not a checkpoint of this run ({type(fault).__name__}: {fault}).") from fault


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors. What the disk refuses is an `OSError`, as everywhere else."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as fault:
        number = re.search(r"\(os error (\d+)\)", str(fault))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from fault


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def _optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for optimizer in optimizers:
        for parameter, slots in optimizer.state.items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"{names[id(parameter)]}/{slot}"] = value.contiguous()
    return tensors


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
