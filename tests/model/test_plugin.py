"""Activations from a user's file: what trains is added, what cannot train is refused and adds nothing."""

from pathlib import Path

import pytest
import torch
from helpers import TOKENS, loud_model, without_gradient

from errors import UserError
from model.activations import ACTIVATIONS, is_gated
from model.plugin import load_plugin

HEAD = """
import sys
from functools import partial
import torch
from torch import nn
from model.activations import Gated, gated, pointwise
"""


pytestmark = pytest.mark.usefixtures("registry")


def plugin(folder: Path, text: str) -> Path:
    path = folder / "my_acts.py"
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def load(folder: Path, text: str) -> None:
    load_plugin(plugin(folder, text))


CLAMPED = """
class Clamped(Gated):
    def __init__(self):
        super().__init__(nn.SiLU)

    def forward(self, gate, up):
        return {act}(gate) * (up.{clamp}(-1, 1) + 1)

ACTIVATIONS = {{"clamped": Clamped}}
"""


def test_plugin_adds_names_that_train(tmp_path):
    before = list(ACTIVATIONS)
    load(
        tmp_path,
        CLAMPED.format(act="self.act", clamp="clamp")
        + "ACTIVATIONS |= {'shrink': nn.Tanhshrink, 'tan': gated(nn.Tanh)}",
    )
    assert list(ACTIVATIONS) == [*before, "clamped", "shrink", "tan"]
    assert [is_gated(name) for name in ("clamped", "shrink", "tan")] == [True, False, True]
    for name in ("clamped", "shrink", "tan"):
        model = loud_model(name)
        model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        assert without_gradient(model) == []
    assert isinstance(loud_model("shrink").get_submodule("blocks.1.ffn.act"), torch.nn.Tanhshrink)


BAD_FILES = [
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("def broken(:", "SyntaxError"),
    ("import no_such_package_anywhere", "ModuleNotFoundError.*no_such_package_anywhere"),
    ("sys.exit(3)", "SystemExit: 3"),
    ("", "it must define ACTIVATIONS"),
    ("ACTIVATIONS = [nn.ReLU]", "it must define ACTIVATIONS"),
    ("from model.activations import ACTIVATIONS", "it must define ACTIVATIONS, a dict of its own"),
    ("ACTIVATIONS = {'new': nn.ReLU, 'relu': nn.ReLU}", "'relu' is in the registry already"),
]
# What a run's folder cannot be called, or what lies beside the runs of a study.
BAD_NAMES = [3, None, "", ".", "..", ".hid", "-x", "a\n", "tune", "Wandb", "report.html", "a/b.CSV", "x" * 300]
BAD_FILES += [(f"ACTIVATIONS = {{{name!r}: nn.ReLU}}", "cannot name the folder of a run") for name in BAD_NAMES]
ONE_MESSAGE = r"'new' does not work as an activation: (?=.* has to make a new nn\.Module at each call).*"
BAD_FACTORIES = {
    "nn.ReLU()": "TypeError",
    "3": "TypeError: 'int' object is not callable",
    "lambda: 3": "the factory made 3",
    "lambda: [nn.ReLU()]": r"the factory made \[ReLU\(\)\]",
    "sys.exit": "SystemExit",
    "nn.functional.relu": "TypeError",
    "lambda one=nn.ReLU(): one": "it is one object for all layers",
    "lambda: nn.Hardtanh(0, torch.rand(1).item())": "meta tensors",
    "nn.GLU": "it does not return a tensor of the shape",
    "pointwise(lambda u: 3)": "it does not return a tensor of the shape",
    "pointwise(lambda u: u.mean())": "it does not return a tensor of the shape",
    "pointwise(lambda u: u.double())": r"it turns torch\.float32 into torch\.float64",
    "pointwise(lambda u: u > 0)": r"it turns torch\.float32 into torch\.bool",
    "pointwise(lambda u: (u > 0) * 1.0)": "what it returns has no gradient",
    "pointwise(lambda u: u.detach())": "what it returns has no gradient",
    "partial(nn.ReLU, inplace=True)": r"it changes its input \(inplace=True\)",
    "gated(partial(nn.SELU, inplace=True))": r"it changes its input \(inplace=True\)",
    "lambda: nn.Bilinear(2, 2, 2)": "TypeError",  # two inputs, but no Gated
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *BAD_FILES,
        *((f"ACTIVATIONS = {{'new': {factory}}}", f"{ONE_MESSAGE}{fault}") for factory, fault in BAD_FACTORIES.items()),
        (CLAMPED.format(act="self.act", clamp="clamp_"), "'clamped' .*it changes its input"),  # the one that is no gate
        (CLAMPED.format(act="torch.tanh", clamp="clamp"), r"'clamped' .*does not call self\.act"),
    ],
)
def test_bad_plugin_is_refused_and_adds_nothing(tmp_path, text, message):
    before = list(ACTIVATIONS)
    with pytest.raises(UserError, match=rf"(?s)^--plugin .*my_acts\.py: .*{message}"):
        load(tmp_path, text)
    assert list(ACTIVATIONS) == before


def test_same_file_loaded_again_replaces_what_it_added(tmp_path):
    before = list(ACTIVATIONS)
    load(tmp_path, "ACTIVATIONS = {'mine': pointwise(lambda u: 2 * u), 'old': nn.ReLU}")
    for slope in (2, 30):  # of another length: Python tells versions of a file apart by length and second
        load(tmp_path, f"ACTIVATIONS = {{'mine': pointwise(lambda u: {slope} * u)}}")
        load_plugin(tmp_path / "my_acts.py")  # unchanged
        assert list(ACTIVATIONS) == [*before, "mine"]
        assert ACTIVATIONS["mine"]()(torch.tensor(1.0)) == slope


def test_names_of_two_files_stand_side_by_side_and_are_not_replaced(tmp_path):
    load(tmp_path, "ACTIVATIONS = {'mine': nn.ReLU}")
    (tmp_path / "other").mkdir()
    load(tmp_path / "other", "ACTIVATIONS = {'yours': nn.ReLU}")
    assert {"mine", "yours"} <= set(ACTIVATIONS)
    with pytest.raises(UserError, match="'mine' is in the registry already"):
        load(tmp_path / "other", "ACTIVATIONS = {'mine': nn.Tanh}")
    assert ACTIVATIONS["mine"] is torch.nn.ReLU


def test_plugin_may_name_in_any_language(tmp_path):
    load(tmp_path, "ACTIVATIONS = {name: nn.ReLU for name in ('λ-relu_0.5+', 'a/b (c)', 'tuned')}")
    assert {"λ-relu_0.5+", "a/b (c)", "tuned"} <= set(ACTIVATIONS)


def test_plugin_may_be_any_python(tmp_path):
    path = tmp_path / "typed.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Slope:\n    value: float = 0.2\n"
        "ACTIVATIONS = {'leaky': lambda: nn.LeakyReLU(Slope().value)}\n"
    )
    load_plugin(path)
    assert ACTIVATIONS["leaky"]()(torch.tensor(-1.0)) == pytest.approx(-0.2)


def test_trial_of_a_random_activation_draws_no_number_of_the_users(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(tmp_path, "ACTIVATIONS = {'rrelu': nn.RReLU}")
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_python_file_is_refused(tmp_path):
    (tmp_path / "acts.txt").write_text("ACTIVATIONS = {}")
    for name in ("nowhere.py", "acts.txt", "."):
        with pytest.raises(UserError, match=r"no such Python file \(\.py\)"):
            load_plugin(tmp_path / name)
