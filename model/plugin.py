"""Activations from a user's own Python file, given as `--plugin FILE`."""

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from errors import UserError
from files import sha256_of
from model.activations import ACTIVATIONS, Gated

# A name becomes part of the name of a run's folder, beside which a study has files of its own.
NAME = re.compile(r"(?!(tune|wandb|.*\.(toml|html|csv|png))$)[^.+-].{,199}", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    """A file that this process has loaded: its path as it was given, its hash, and the names that it has added."""

    given: str
    sha256: str
    names: list[str]


loaded: dict[Path, Loaded] = {}  # by the resolved path


def load_plugin(path: Path) -> None:
    """Run a Python file and add the dict `ACTIVATIONS` that it defines to the registry.

    A file that is loaded again replaces what it added before.

    Raises:
        UserError: the file is missing or fails, or one of its activations cannot be trained.
    """
    given, path = str(path), path.expanduser().resolve()
    if path in loaded:
        for name in loaded.pop(path).names:
            del ACTIVATIONS[name]
    added = getattr(_run(path), "ACTIVATIONS", None)
    if not isinstance(added, dict) or added is ACTIVATIONS:
        raise UserError(f"--plugin {path}: it must define ACTIVATIONS, a dict of its own: name -> factory of a module.")
    for name, factory in added.items():
        if problem := _problem_with(name, factory):
            raise UserError(f"--plugin {path}: {name!r} {problem}")
    ACTIVATIONS.update(added)
    loaded[path] = Loaded(given, sha256_of(path), list(added))


def origin(activation: str) -> tuple[str, str]:
    """Return path and SHA-256 of the plugin that added an activation, or two empty strings for one of the registry."""
    for plugin in loaded.values():
        if activation in plugin.names:
            return plugin.given, plugin.sha256
    return "", ""


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: no such Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks itself up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    return module


def _problem_with(name: object, factory: Callable[[], nn.Module]) -> str:
    """Return what is wrong with an activation, found by one trial call, or an empty string."""
    if name in ACTIVATIONS:
        return "is in the registry already. Choose another name."
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return (
            "cannot name the folder of a run. A name has 1 to 200 characters, does not begin with . + or -, "
            "and is neither tune, wandb nor a file name (.toml .html .csv .png)."
        )
    try:
        act = factory()
        with torch.device("meta"):
            factory()  # a network's size is counted without memory for its weights
        fault = _trial(act)
        if isinstance(act, nn.Module) and factory() is act:
            fault = "it is one object for all layers"
    except (Exception, SystemExit) as error:
        fault = f"{type(error).__name__}: {error}"
    if not fault:
        return ""
    return (
        f"does not work as an activation: {fault}. Its factory has to make a new nn.Module at each call, which returns "
        "a new tensor of the shape and dtype of its input, with a gradient. Gated ones are a model.activations.Gated."
    )


def _trial(act: nn.Module) -> str:
    """Call an activation once and return what is wrong with its result, or an empty string."""
    if not isinstance(act, nn.Module):
        return f"the factory made {act!r}"
    u_BTF = torch.linspace(-3, 3, 64).view(2, 4, 8).requires_grad_()
    # Not leaves, so that an in-place operation is possible, and seen.
    inputs = [u_BTF + 0 for _ in range(2 if isinstance(act, Gated) else 1)]
    gates = []
    if isinstance(act, Gated):
        act.act.register_forward_hook(lambda module, given, gate: gates.append(gate))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        h_BTF = act(*inputs)
    if isinstance(act, Gated) and not gates:
        return "it is gated and does not call self.act, which the probes measure"
    if not isinstance(h_BTF, Tensor) or h_BTF.shape != u_BTF.shape:
        return "it does not return a tensor of the shape that it is given"
    if h_BTF.dtype != u_BTF.dtype:
        return f"it turns {u_BTF.dtype} into {h_BTF.dtype}"
    if not h_BTF.requires_grad:
        return "what it returns has no gradient"
    if not all(given_BTF.equal(u_BTF) for given_BTF in inputs):
        return "it changes its input (inplace=True)"
    return ""
