"""Configs and flags at random: a run that could begin, or code 2 and the name of what is wrong; never a traceback.

The path is the real one from the command line up to the moment of training: files, folders, locks and data are real.
Only the training itself (`loop._run`, and `protocol._train_arms` of a study) and what reads its results are left out.
A small network computes once, so that its shape is one that can be.
"""

import dataclasses
import functools
import json
import random
import shutil
import string
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import UserError
from model.activations import ACTIVATIONS
from model.gpt import GPT
from study import command
from study.plan import config as study_config
from study.plan.config import ALL_SECTIONS, parse_command
from study.plan.plan import make_plan
from study.run import protocol
from training import loop

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


@dataclasses.dataclass(frozen=True)
class Change:
    """What is written into a config that would do: where, and by a flag or in the file."""

    section: str
    key: str
    value: Any
    by: str  # flag, file or grid


def typo(draw: random.Random, word: str, edits: int) -> str:
    """Some letters of a word left out, added, exchanged or put in each other's place."""
    for _ in range(edits):
        at, other = draw.randrange(len(word) + 1), draw.choice(string.ascii_lowercase + "_")
        before, here, after = word[:at], word[at : at + 1], word[at + 1 :]
        word = draw.choice([before + other + here + after, before + after, before + other + after])
        if here and after and draw.random() < 0.25:
            word = before + after[0] + here + after[1:]
    return word


def of_its_type(section: str, key: str) -> st.SearchStrategy[Any]:
    """Values that the type of a field allows, if not its range."""
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
def changes(draw: Any) -> Change:
    section, key = draw(st.sampled_from(FIELDS))
    by = draw(st.sampled_from(["flag", "file", "grid"]))
    fitting = st.sampled_from(CORPORA) if key == "corpus" else of_its_type(section, key)
    value = draw(fitting if key == "corpus" or draw(st.booleans()) else values)
    if draw(st.booleans()) and draw(st.booleans()):
        mistaken = typo(draw(st.randoms(use_true_random=False)), key, 2)
        key = mistaken if mistaken.strip("_-") and "." not in mistaken else key
    return Change(section, key, value, by)


@functools.cache
def _parsed(arguments, default):
    return parse_command([*arguments], default)


def parse_once(arguments, default):
    """Parse equal command lines once: it takes most of the time of an example without flags of its own."""
    return _parsed((*arguments,), default)


@pytest.fixture
def until_training(call, monkeypatch, corpus, tmp_path):
    """Return a function that gives a config and flags to train.py, and stops where training would begin."""
    end = {"val/loss": 1.0, "val/perplexity": 2.7, "val/bits_per_byte": 1.0}
    monkeypatch.setattr(study_config, "parse_command", parse_once)

    def ended(config, _folder, data, *_):
        if max(config.model.n_layer, config.model.d_model, config.model.context) <= 64:
            GPT(config.model, data.tokenizer.n_vocab, config.train.seed)(torch.zeros(1, 1, dtype=torch.long))
        yield from ()  # a run is a generator
        return end

    monkeypatch.setattr(loop, "_run", ended)
    monkeypatch.setattr(protocol, "_train_arms", lambda *_: [])
    monkeypatch.setattr(command, "compare", lambda *_, **__: [])
    monkeypatch.setattr(command, "mirror_study", lambda *_, **__: None)

    def run(tree, flags, raw=b""):
        laid = {**tree, "data": {"corpus": str(corpus), "tokenizer": "bytes"} | tree.get("data", {})}
        (tmp_path / "fuzz.toml").write_bytes(tomli_w.dumps(laid).encode() + raw)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return call("train", tmp_path / "fuzz.toml", *flags, f"--out={tmp_path / 'out'}")

    return run


def written(value):
    """A value as a flag takes it."""
    if isinstance(value, str):
        return value
    line = tomli_w.dumps({"v": value}, multiline_strings=False)
    return line.partition("=")[2].strip() if line.startswith("v =") else json.dumps(str(value))


def fuzz(test, examples, *strategies):
    """Call a test with examples of the strategies: the same ones each time."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    limits = settings(max_examples=examples, derandomize=True, database=None, suppress_health_check=health)
    limits(given(*strategies)(test))()


@pytest.mark.timeout(3600)
def test_any_value_makes_a_run_or_is_named(until_training, times):
    seen = {0: 0, 2: 0}

    def change(one):
        flags: list[str] = []
        tree: dict[str, Any] = {name: dict(part) for name, part in SMALL.items()}
        if one.by == "flag":
            flags = [f"--{one.section}.{one.key}={written(one.value)}"]
        elif one.by == "file":
            tree.setdefault(one.section, {})[one.key] = one.value
        else:
            tree["grid"] = [{one.section: {one.key: one.value}}]
        code, said = until_training(tree, flags)
        seen[code] += 1
        assert "Traceback" not in said
        if code:
            names = {one.key, one.key.replace("_", "-"), json.dumps(one.key), repr(one.key)}
            # what does not go together is named by the other key too
            names |= {"tokenizer"} if one.key == "val_fraction" else set()
            assert any(name in said for name in names), said

    fuzz(change, times(200, 2000), changes())
    print(f"{seen[0]} would run, {seen[2]} end with code 2 and the name")
    assert min(seen.values()) > sum(seen.values()) / 20


@pytest.mark.timeout(3600)
def test_any_bytes_in_a_file_end_without_a_traceback(until_training, times):
    def append(raw):
        code, _ = until_training({}, [], raw)
        assert code in (0, 2)

    fuzz(append, times(30, 300), st.one_of(st.binary(max_size=40), text.map(str.encode)))


def vocabularies():
    """Every set of names of which a user types one, and how it is given in a tree."""
    yield "section", list(ALL_SECTIONS), lambda name: {name: {}}
    for section, part in ALL_SECTIONS.items():
        fields = dataclasses.fields(part)
        yield f"key of {section}", [f.name for f in fields], lambda name, section=section: {section: {name: 1}}
        for field in fields:
            kind = get_args(field.type)[0]
            if get_origin(kind) is Literal:
                path = section, field.name
                yield ".".join(path), list(get_args(kind)), lambda name, path=path: {path[0]: {path[1]: name}}
    yield "activation", list(ACTIVATIONS), lambda name: {"model": {"activation": name}}
    yield "tokenizer", ["bytes", "gpt2"], lambda name: {"data": {"tokenizer": name}}


def suggested_in_a_file(tree):
    try:
        make_plan(tree, "it")
    except UserError as error:
        return str(error)
    return ""


def suggested_for_a_flag(flag):
    with pytest.raises(UserError) as error:
        parse_command(["a.toml", f"{flag}=1"], Path("none"))
    return str(error.value)


def test_a_typo_of_one_or_two_letters_gets_the_right_suggestion(times):
    draw, found = random.Random(0), []
    groups = list(vocabularies())
    for _ in range(times(1000, 5000)):
        _, names, tree = draw.choice(groups)
        right = draw.choice(names)
        wrong = typo(draw, right, draw.choice([1, 2]))
        if wrong and wrong not in names:
            found.append(f"Did you mean {right!r}?" in suggested_in_a_file(tree(wrong)))
    flags = []
    for _ in range(times(30, 300)):
        section, right = draw.choice(FIELDS)
        wrong = typo(draw, right, draw.choice([1, 2]))
        if wrong.strip("_") and (section, wrong.replace("-", "_")) not in FIELDS:
            flags.append(f"Did you mean '--{section}.{right}'?" in suggested_for_a_flag(f"--{section}.{wrong}"))
    shares = [sum(group) / len(group) for group in (found, flags)]
    print(f"right: {shares[0]:.1%} of {len(found)} in files, {shares[1]:.1%} of {len(flags)} as flags")
    assert min(shares) >= 0.95
