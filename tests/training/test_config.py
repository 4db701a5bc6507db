"""A run's config: read, checked, written, compared."""

import dataclasses

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from errors import UserError
from study.plan.config import ALL_SECTIONS
from training.config import build, build_sections, differences, read_toml, to_toml


def test_a_config_written_and_read_back_is_equal(tmp_path, tiny):
    (tmp_path / "config.toml").write_text(to_toml(tiny()), encoding="utf-8")
    assert build(read_toml(tmp_path / "config.toml"), "it") == tiny()


def test_steps_cover_the_budget():
    config = build({"train": {"tokens": 1000, "batch_size": 3}, "model": {"context": 10}}, "it")
    assert config.tokens_per_step == 30
    assert config.steps == 34


MISTAKES = {
    "model.activaton=relu": ["activaton", "'activation'"],
    "modle.n_layer=2": ["modle", "'model'"],
    "model.activation=rellu": ["rellu", "'relu'"],
    "train.optimizer=adam": ["'adam'", "'adamw'", "muon"],
    "train.tokens=0": ["train.tokens = 0", "greater than 0"],
    "train.threads=3000000000": ["train.threads = 3000000000", "less than or equal to 1024"],
    "model.n_head=5": ["d_model 128", "5 heads", "4"],
    "model.norm=layer": ["'layer'", "Allowed: rms, none"],
    "train.accumulate=3": ["batch_size = 16", "accumulate = 3"],
    "data.tokenizer=byte": ["'byte'", "'bytes'"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_the_nearest_valid_name(mistake):
    path, _, text = mistake.partition("=")
    section, key = path.split(".")
    value = float(text) if "." in text else int(text) if text.lstrip("-").isdigit() else text
    with pytest.raises(UserError) as error:
        build({section: {key: value}}, "a.toml")
    assert str(error.value).startswith("a.toml:")
    for part in MISTAKES[mistake]:
        assert part in str(error.value)


OTHER_TYPES = {int: ["4", 4.0, True], float: ["0.5", True], str: [1, True], bool: [0, "true"], tuple: [4, "4"]}


@pytest.mark.parametrize("section", ALL_SECTIONS)
def test_a_value_of_another_type_is_refused_in_every_field(section):
    for field in dataclasses.fields(ALL_SECTIONS[section]):
        for value in OTHER_TYPES[type(field.default)]:
            with pytest.raises(UserError, match=rf"{section}\.{field.name}"):
                build_sections({section: {field.name: value}}, ALL_SECTIONS, "it")


def test_a_whole_number_is_a_float_too_and_a_list_a_tuple():
    assert build({"train": {"lr": 1}}, "it").train.lr == 1.0
    study = build_sections({"study": {"lr": [1, 0.5, 0.25]}}, ALL_SECTIONS, "it")["study"]
    assert study.lr == (1.0, 0.5, 0.25)
    for value in (["1", "2", "3"], [True, 2.0, 3.0]):
        with pytest.raises(UserError, match=r"study\.lr\.0"):
            build_sections({"study": {"lr": value}}, ALL_SECTIONS, "it")


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(UserError) as error:
        build({"train": {"tokens": 0, "lrr": 1}, "model": {"n_layer": "four"}}, "a.toml")
    assert [word in str(error.value) for word in ("train.tokens", "'lrr'", "model.n_layer")] == [True] * 3


def test_broken_and_missing_files_are_named(tmp_path):
    (tmp_path / "bad.toml").write_text("[train\nlr = 1")
    with pytest.raises(UserError, match=r"bad.toml cannot be read as TOML"):
        read_toml(tmp_path / "bad.toml")
    with pytest.raises(UserError, match=r"Did you mean .*bad\.toml"):
        read_toml(tmp_path / "bda.toml")


@pytest.mark.parametrize("value", ["\x1b[2J", "a\x07b", "\x9b31m", "\x7f"])
def test_control_characters_never_leave_a_config(tmp_path, value):
    for tree in ({"model": {"activation": value}}, {"model": {"activation": ["relu", value]}}, {"model": {value: 1}}):
        (tmp_path / "it.toml").write_text(tomli_w.dumps(tree))
        with pytest.raises(
            UserError, match=r"it\.toml cannot be read as TOML: .*model.* has the control character"
        ) as error:
            read_toml(tmp_path / "it.toml")
        assert value not in str(error.value)
    (tmp_path / "it.toml").write_text("[claim]\ntitle = '''two\nlines,\ta tab'''")
    assert read_toml(tmp_path / "it.toml") == {"claim": {"title": "two\nlines,\ta tab"}}


def test_differences_leave_out_where_a_run_runs():
    one = build({"train": {"threads": 1, "device": "cpu", "lr": 0.1}}, "it")
    two = build({"train": {"threads": 2, "device": "auto", "lr": 0.2}, "wandb": {"mode": "offline"}}, "it")
    assert differences(one, two) == ["train.lr: 0.1 in the folder, 0.2 asked for"]


@given(st.floats(1e-8, 1e3), st.integers(0, 2**40), st.integers(1, 10**12))
def test_numbers_survive_the_file_exactly(tmp_path_factory, lr, seed, tokens):
    path = tmp_path_factory.mktemp("config") / "c.toml"
    config = build({"train": {"lr": lr, "seed": seed, "tokens": tokens}}, "it")
    path.write_text(to_toml(config), encoding="utf-8")
    assert build(read_toml(path), "it") == config
