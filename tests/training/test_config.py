import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from errors import UserError
from study.plan.config import ALL_SECTIONS, merge, parse_command
from study.plan.plan import make_plan
from training.config import RunConfig, build, build_sections, differences, read_toml, to_toml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_a_config_written_and_read_back_is_equal(tmp_path, tiny):
    (tmp_path / "config.toml").write_text(to_toml(tiny()), encoding="utf-8")
    assert build(read_toml(tmp_path / "config.toml"), "it") == tiny()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    runs = make_plan(merge(path, {}), str(path)).runs
    assert all(isinstance(config, RunConfig) for config in runs.values())


def test_the_default_is_the_five_that_everyone_knows():
    quick = next(path for path in CONFIGS if path.name == "quick.toml")
    runs = make_plan(merge(quick, {}), "quick").runs
    assert list(runs) == ["sigmoid", "relu", "gelu", "silu", "swiglu"]
    assert (
        len({dataclasses.replace(c, model=dataclasses.replace(c.model, activation="gelu")) for c in runs.values()}) == 1
    )


def test_steps_cover_the_budget():
    config = build({"train": {"tokens": 1000, "batch_size": 3}, "model": {"context": 10}}, "it")
    assert config.tokens_per_step == 30
    assert config.steps == 34


MISTAKES = {
    "model.activaton=relu": ["activaton", "'activation'"],
    "modle.n_layer=2": ["modle", "'model'"],
    "model.activation=rellu": ["rellu", "'relu'"],
    "train.optimizer=adam": ["'adam'", "'adamw'", "muon"],
    "train.schedule=cosin": ["'cosin'", "'cosine'"],
    "train.tokens=0": ["train.tokens = 0", "greater than 0"],
    "train.tokens=-5": ["train.tokens = -5", "greater than 0"],
    "train.tokens=1.5": ["train.tokens = 1.5"],
    "train.lr=fast": ["train.lr = 'fast'"],
    "train.seed=-1": ["train.seed = -1"],
    "train.threads=3000000000": ["train.threads = 3000000000", "less than or equal to 1024"],
    "model.n_head=5": ["d_model 128", "5 heads", "4"],
    "train.batch_size=100000000000000000000": ["train.batch_size = 1", "less than 2147483648"],
    "train.parallel=fsdp": ["unknown key in [train] 'parallel'"],
    "model.norm=layer": ["'layer'", "Allowed: rms, none"],
    "train.accumulate=3": ["batch_size = 16", "accumulate = 3"],
    "train.warmup=1.5": ["train.warmup = 1.5"],
    "data.tokenizer=byte": ["'byte'", "'bytes'"],
    "data.val_fraction=0": ["data.val_fraction = 0"],
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
    (tmp_path / "flat.toml").write_text("lr = 1")
    with pytest.raises(UserError, match="every key stands in a section"):
        merge(tmp_path / "flat.toml", {})


def test_differences_leave_out_where_a_run_runs():
    one = build({"train": {"threads": 1, "device": "cpu", "lr": 0.1}}, "it")
    two = build({"train": {"threads": 2, "device": "auto", "lr": 0.2}, "wandb": {"mode": "offline"}}, "it")
    assert differences(one, two) == ["train.lr: 0.1 in the folder, 0.2 asked for"]


def test_flags_stand_above_the_file_and_the_file_above_the_defaults(tmp_path):
    (tmp_path / "a.toml").write_text('[train]\nlr = 0.5\nseed = 7\n[model]\nactivation = ["relu", "gelu"]')
    command = parse_command([str(tmp_path / "a.toml"), "--train.lr=3e-3", "--model.d-model", "64"], Path("none"))
    assert parse_command(["--out=~/here"], Path("none")).out == Path.home() / "here"
    tree = merge(command.config, command.flags)
    assert tree == {
        "train": {"lr": 3e-3, "seed": 7},
        "model": {"activation": ["relu", "gelu"], "d_model": 64},
    }
    assert command.out == Path("runs/a")
    assert {c.train.batch_size for c in make_plan(tree).runs.values()} == {RunConfig().train.batch_size}


def test_a_flag_may_make_or_end_a_study(tmp_path):
    (tmp_path / "a.toml").write_text('[model]\nactivation = ["relu", "gelu"]')
    one = parse_command([str(tmp_path / "a.toml"), "--model.activation=silu"], Path("none"))
    assert list(make_plan(merge(one.config, one.flags)).runs) == [""]
    many = parse_command([str(tmp_path / "a.toml"), "--train.seed=[1, 2]", '--model.activation=["silu"]'], Path("none"))
    assert list(make_plan(merge(many.config, many.flags)).runs) == ["silu-seed1", "silu-seed2"]


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--train.tokns", "--train.tokens"), ("--model.tokens", "--train.tokens"), ("--data.d-model", "--model.d_model")],
)
def test_a_flag_that_its_section_lacks_gets_the_nearest_or_its_own_section(flag, meant):
    with pytest.raises(UserError, match=f"unknown flag.* Did you mean '{meant}'"):
        parse_command(["a.toml", flag], Path("none"))


def test_a_number_given_for_a_name_stays_text():
    command = parse_command(["a.toml", "--wandb.project=2024"], Path("none"))
    assert command.flags == {"wandb": {"project": "2024"}}


@given(st.floats(1e-8, 1e3), st.integers(0, 2**40), st.integers(1, 10**12))
def test_numbers_survive_the_file_exactly(tmp_path_factory, lr, seed, tokens):
    path = tmp_path_factory.mktemp("config") / "c.toml"
    config = build({"train": {"lr": lr, "seed": seed, "tokens": tokens}}, "it")
    path.write_text(to_toml(config), encoding="utf-8")
    assert build(read_toml(path), "it") == config


def test_the_command_line_of_a_sweep_agent_is_understood(monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((CONFIGS[0].parent / "wandb-sweep.yaml").read_text())
    chosen = {name: {"value": entry["values"][-1]} for name, entry in sweep["parameters"].items()}
    chosen["model.ffn_residual"] = {"value": False}
    arguments = create_sweep_command_args({"args": chosen})["args"]
    template = create_sweep_command(list(sweep["command"]))
    assert template[:3] == ["${env}", "${interpreter}", "${program}"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    line = [part for chunk in template[3:] for part in (arguments if chunk == "${args}" else [chunk])]
    assert "--model.activation=swiglu" in line
    command = parse_command(line, Path("none"))
    assert command.out == Path("runs/single-r1")
    single = CONFIGS[0].parent / command.config.name
    (run,) = make_plan(merge(single, command.flags)).runs.values()
    assert (run.model.activation, run.model.ffn_residual, run.train.lr, run.train.seed) == ("swiglu", False, 0.008, 4)
