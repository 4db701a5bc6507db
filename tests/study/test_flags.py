"""The command line and the shipped configs: files and flags to runs."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from errors import UserError
from model.plugin import load_plugin
from study.plan.config import merge, parse_command
from study.plan.plan import make_plan, read_plan
from training.config import RunConfig

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def test_a_key_outside_of_any_section_is_refused(tmp_path):
    (tmp_path / "flat.toml").write_text("lr = 1")
    with pytest.raises(UserError, match="every key stands in a section"):
        merge(tmp_path / "flat.toml", {})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
@pytest.mark.usefixtures("registry")
def test_every_shipped_config_loads(path):
    if path.with_suffix(".py").exists():
        load_plugin(path.with_suffix(".py"))
    runs = read_plan(path, {}).runs
    assert all(isinstance(config, RunConfig) for config in runs.values())


def test_the_default_is_the_five_that_everyone_knows():
    quick = next(path for path in CONFIGS if path.name == "quick.toml")
    runs = make_plan(merge(quick, {}), "quick").runs
    assert list(runs) == ["sigmoid", "relu", "gelu", "silu", "swiglu"]
    assert (
        len({dataclasses.replace(c, model=dataclasses.replace(c.model, activation="gelu")) for c in runs.values()}) == 1
    )


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


@pytest.mark.parametrize(
    ("flag", "whole"),
    [
        ("--tokens=1000", "--train.tokens"),
        ("--lr", "--train.lr or --study.lr"),
        ("--d-model=64", "--model.d_model"),
        ("--wandb=off", "--wandb.mode or --wandb.project"),
    ],
)
def test_a_flag_without_its_section_or_field_gets_the_whole_one(flag, whole):
    with pytest.raises(UserError, match=f"^{flag}: a flag has a section and a field. Use {whole}"):
        parse_command(["a.toml", flag], Path("none"))


def test_a_whole_number_may_be_written_as_a_power_of_ten():
    command = parse_command(["a.toml", "--train.tokens=1e5", "--train.lr=1e3"], Path("none"))
    assert command.flags == {"train": {"tokens": 100_000, "lr": 1000.0}}
    assert isinstance(command.flags["train"]["tokens"], int)
    with pytest.raises(UserError, match=r"train.tokens = 1.5"):
        make_plan(parse_command(["a.toml", "--train.tokens=1.5"], Path("none")).flags)


def test_words_of_other_trainers_get_the_right_name():
    with pytest.raises(UserError, match=r"unknown device 'gpu'\. Did you mean 'cuda'"):
        make_plan({"train": {"device": "gpu"}})
    with pytest.raises(UserError, match=r"unknown mode 'off'\. Did you mean 'disabled'"):
        make_plan({"wandb": {"mode": "off"}})
    with pytest.raises(UserError, match=r"""To compare several: --model.activation='\["relu", "gelu"\]'"""):
        make_plan({"model": {"activation": "relu,gelu"}})


def test_a_number_given_for_a_name_stays_text():
    command = parse_command(["a.toml", "--wandb.project=2024"], Path("none"))
    assert command.flags == {"wandb": {"project": "2024"}}


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
