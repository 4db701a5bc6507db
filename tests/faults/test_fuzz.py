"""Configs and flags at random: a run that could begin, or code 2 and the name of what is wrong; never a traceback.

The path is the real one from the command line to the moment of training. A small network computes once, so that its
shape is one that can be.
"""

import dataclasses
import json
import random
import string
from typing import Any, Literal, get_args, get_origin

import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.dataset import prepare
from errors import door
from model.activations import ACTIVATIONS
from model.gpt import GPT
from study.plan.config import ALL_SECTIONS, parse_command
from study.plan.plan import read_plan
from training.limits import check_available, check_context

FIELDS = [(section, field.name) for section, part in ALL_SECTIONS.items() for field in dataclasses.fields(part)]
SMALL = {"model": {"n_layer": 1, "n_head": 2, "d_model": 24, "context": 16}, "train": {"threads": 1}}
CORPORA = ["shakespear", "nowhere.txt", "*.txt", "", ".", "/", "~", "tests", "a b", "\0", "x" * 5000, "[", "stdlib.txt"]
NUMBERS = [0, 1, -1, 2, 3, 257, 10**6, 2**31, 2**63 - 1, -(2**63), 1e-320, 1e308, float("inf"), float("nan"), -0.0, 0.5]
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
scalars = st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), text)
values = st.one_of(
    scalars,
    st.sampled_from([*ACTIVATIONS, "adamw", "cosine", "cpu", "bf16", "bytes", "bpe:300", "layer", "none"]),
    st.lists(scalars, max_size=3),
    st.dictionaries(text, scalars, max_size=2),
)


def typo(draw: random.Random, word: str) -> str:
    """A word with a letter left out or exchanged; not the first one, so that something is left."""
    at = draw.randrange(1, len(word))
    return word[:at] + draw.choice(["", draw.choice(string.ascii_lowercase)]) + word[at + 1 :]


def of_its_type(section: str, key: str) -> st.SearchStrategy[Any]:
    """Values that the type of a field allows, if not its range."""
    if key == "corpus":
        return st.sampled_from(CORPORA)
    kind = get_args(ALL_SECTIONS[section].__dataclass_fields__[key].type)[0]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    small = {
        int: st.integers(0, 64),
        float: st.floats(0, 1),
        bool: st.booleans(),
        str: st.sampled_from(["gelu", "bytes"]),
    }
    return small.get(kind, st.lists(st.floats(1e-6, 1), min_size=3, max_size=4))


@st.composite
def changes(draw: Any) -> tuple[str, str, Any, str]:
    """A change to a config: section, key, value; by a flag, in the file or in a grid of it."""
    section, key = draw(st.sampled_from(FIELDS))
    by = draw(st.sampled_from(["flag", "file", "grid"]))
    value = draw(of_its_type(section, key) if key == "corpus" or draw(st.booleans()) else values)
    if draw(st.integers(0, 3)) == 0:
        key = typo(draw(st.randoms(use_true_random=False)), key)
    return section, key, value, by


@pytest.fixture
def up_to_training(corpus, tmp_path, capsys):
    """Return a function from a config and flags to the exit code of train.py, and all that it would print."""

    def run(tree, flags):
        config = {**tree, "data": {"corpus": str(corpus), "tokenizer": "bytes"} | tree.get("data", {})}
        path = tmp_path / "fuzz.toml"
        path.write_bytes(tomli_w.dumps(config).encode())

        def main():
            given = parse_command([str(path), *flags], path).flags if flags else {}
            for each in read_plan(path, given).runs.values():
                check_available(each)
                data, network = prepare(each.data), each.model
                check_context(each, data)
                if max(network.n_layer, network.d_model, network.context) <= 64:
                    GPT(network, data.tokenizer.n_vocab, each.train.seed)(torch.zeros(1, 1, dtype=torch.long))

        try:
            code = door(main)
        except SystemExit as end:  # of tyro
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.timeout(3600)
def test_any_value_makes_a_run_or_is_named(up_to_training, times):
    seen = {0: 0, 2: 0}

    def try_change(change):
        section, key, value, by = change
        tree: dict[str, Any] = {name: dict(part) for name, part in SMALL.items()}
        written = value if isinstance(value, str) else json.dumps(value)
        flags = [f"--{section}.{key}={written}"] if by == "flag" else []
        if by == "file":
            tree.setdefault(section, {})[key] = value
        elif by == "grid":
            tree["grid"] = [{section: {key: value}}]
        code, said = up_to_training(tree, flags)
        seen[code] += 1
        # What does not go together is named by the other key too.
        names = [key, key.replace("_", "-"), *(["tokenizer"] if key == "val_fraction" else [])]
        assert code == 0 or any(name in said for name in names), said

    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    # The same examples each time.
    limits = settings(max_examples=times(100, 2000), derandomize=True, database=None, suppress_health_check=health)
    limits(given(changes())(try_change))()
    print(f"{seen[0]} would run, {seen[2]} end with code 2 and the name")
    assert min(seen.values()) > sum(seen.values()) / 20
