"""Checkpoints: safetensors and JSON, a SHA-256 manifest that is verified on load. Nothing is ever unpickled."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from data.tokenizer import Tokenizer
from errors import Damaged, UserError
from files import PARTIAL, check_sha256, own_file, sha256_of, write_folder, writing
from training.optim import parameters_of, slot_names

FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "tokenizer.json",
    "metrics.jsonl",  # a copy of the run's records up to here, which a resume puts back
    "val_windows.npy",  # the losses of the newest score
)
DROPPED = ".dropped-"  # begins the name of a checkpoint that is being deleted
MANIFEST = TypeAdapter(dict[str, str])  # the SHA-256 of each file

Loaded = TypeVar("Loaded")


def save(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    probes: Mapping[str, Tensor],
    state: Mapping[str, Any],
    tokenizer: Tokenizer,
    records: bytes,
    windows: np.ndarray,
    keep: int,
) -> Path:
    """Write `folder/step-<step>` whole or not at all, then delete all but the `keep` newest checkpoints.

    `state` is what `training.contents.State` lists, `records` the content of metrics.jsonl, `windows` the losses of the
    newest score. The tokenizer makes the checkpoint readable without the corpus.

    Raises:
        UserError: it cannot be written; the checkpoints before it stay.
    """
    target = folder / f"step-{state['step']:08d}"
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    others = _training_tensors(model, optimizers, probes)
    with writing(target, sum(tensor.nbytes for tensor in [*weights.values(), *others.values()])):
        folder.mkdir(exist_ok=True)
        for leftover in [*folder.glob(f"{DROPPED}*"), *folder.glob(f".*{PARTIAL}")]:
            shutil.rmtree(leftover)  # left by a process that was killed while it deleted or wrote
        with write_folder(target) as partial:
            save_tensors(weights, partial / "model.safetensors")
            save_tensors(others, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
            tokenizer.save(partial / "tokenizer.json")
            (partial / "metrics.jsonl").write_bytes(records)
            np.save(partial / "val_windows.npy", windows)
            manifest = {name: sha256_of(partial / name) for name in FILES}
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _prune(folder, target, keep)
    return target


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors. What the disk refuses is an `OSError`, as everywhere else."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as fault:
        raise OSError(str(fault)) from fault


def _training_tensors(model: nn.Module, optimizers: list[Optimizer], probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what training needs beside the weights: the optimisers' tensors, the probes', and the random state.

    A parameter that has taken no step has zeros, from which every optimiser goes on as from nothing. So the names,
    shapes and types are the same at every step of a run.
    """
    tensors = {f"probes/{name}": tensor for name, tensor in probes.items()}
    for key, (optimizer, parameter, slot) in _slots(model, optimizers).items():
        empty = torch.zeros(()) if slot == "step" else torch.zeros_like(parameter)
        tensors[key] = optimizer.state.get(parameter, {}).get(slot, empty).contiguous()
    tensors["rng.cpu"] = torch.get_rng_state()
    # Asking for the state would start CUDA in a process that trains on the CPU.
    if torch.cuda.is_initialized():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _slots(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, tuple[Optimizer, Tensor, str]]:
    """Return what the optimisers keep for each parameter, by the name of its tensor in a checkpoint."""
    found = {}
    for optimizer in optimizers:
        for name, parameter in parameters_of(model, optimizer).items():
            for slot in slot_names(optimizer):
                found[f"{name}/{slot}"] = optimizer, parameter, slot
    return found


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


def load_newest(folder: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    """Return what `load` makes of the newest checkpoint in `folder` that is intact, or None if there is none at all.

    A checkpoint that is damaged, or that `load` refuses as `Damaged`, is named on standard error, and the one before it
    is used.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            verify(path)
            loaded = load(path)
        except Damaged as problem:
            if not path.exists():  # its run goes on, and has deleted it meanwhile
                return load_newest(folder, load)
            problems.append(str(problem))
            continue
        for problem in problems:
            print(f"warning: {problem}. Using {path.name}.", file=sys.stderr, flush=True)
        return loaded
    if problems:
        raise UserError(
            f"no intact checkpoint in {folder}: {'; '.join(problems)}. "
            "Restore them, or delete the folder to start over."
        )
    return None


def verify(path: Path) -> None:
    """Raise `Damaged` unless the files of a checkpoint are those that its manifest lists."""
    manifest_path = path / "manifest.json"
    with own_file(manifest_path):
        manifest = MANIFEST.validate_json(manifest_path.read_bytes())
        expected = [manifest[name] for name in FILES]
    for name, sha256 in zip(FILES, expected, strict=True):
        check_sha256(path / name, sha256, "manifest.json")


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a verified checkpoint into `model`, every one of them.

    Raises:
        Damaged: it does not hold the weights of such a model.
    """
    model.load_state_dict(_load_tensors(path / "model.safetensors", model.state_dict()))


def load_training_state(
    path: Path, model: nn.Module, optimizers: list[Optimizer], probes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Restore the optimisers' state and torch's random state, and return the tensors of the probes.

    `probes` are those of a fresh run, which the tensors have to match.

    Raises:
        Damaged: it does not hold the state of such optimisers and probes.
    """
    file = path / "optimizer.safetensors"
    # What a fresh run would save is what the file has to hold.
    tensors = _load_tensors(file, _training_tensors(model, optimizers, probes), optional="rng.cuda")
    with own_file(file):
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
    for key, (optimizer, parameter, slot) in _slots(model, optimizers).items():
        optimizer.state[parameter][slot] = tensors[key].to(parameter.device)
    return {name: tensors[f"probes/{name}"] for name in probes}


def _load_tensors(path: Path, expected: Mapping[str, Tensor], optional: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file, whose names, shapes and types are exactly those expected.

    One of them is `optional`: a run that began on another device has none.
    """
    with own_file(path):
        found = load_file(path)
        # The fused AdamW trusts the shapes: of a smaller moment it would read beyond the end of the memory.
        own, right = _kinds(found), _kinds(expected)
        for name in sorted((own.keys() | right.keys()) - {optional}):
            if own.get(name) != right.get(name):
                raise ValueError(f"{name} is {own.get(name, 'missing')}, and would be {right.get(name, 'unknown')}")
    return found


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the shape and the type of each tensor as text."""
    return {name: f"{list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}
