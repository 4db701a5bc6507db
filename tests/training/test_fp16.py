"""Runs in fp16, whose loss is scaled, on a CPU: torch has the same autocast and the same scaler there as on a GPU."""

import pytest
import torch
from helpers import records, same_weights, train_and_stop

from errors import UserError
from study.plan.engine import pick_engine
from training import device
from training.device import pick_precision
from training.loop import train, train_stack
from training.sample import load_model

pytestmark = pytest.mark.usefixtures("no_sample")
CPU = torch.device("cpu")


@pytest.fixture
def scale(monkeypatch):
    """Return a function that sets the first scale, and after how many steps without overflow it doubles."""

    def set_scale(first, growth=2000):
        def make(precision, place):
            return torch.amp.GradScaler(place.type, first, growth_interval=growth, enabled=precision == "fp16")

        monkeypatch.setattr("training.run.make_scaler", make)

    return set_scale


def losses(folder, key="train/loss"):
    return [record[key] for record in records(folder) if key in record]


def test_losses_are_those_of_fp32_up_to_rounding(tiny, tmp_path, scale):
    scale(1024.0)
    for precision in ("fp32", "fp16"):
        train(tiny(train={"precision": precision, "log_every": 1}), tmp_path / precision)
    exact, rounded = losses(tmp_path / "fp32"), losses(tmp_path / "fp16")
    # A product in fp16 is off by 2**-11 of itself at most. The first loss, a mean over tokens, comes from about ten
    # products in a row: ten such errors, if all went one way. Training repeats them in the gradients, which the
    # optimiser brings to the size of a learning rate: ten times as much at the end of 20 steps.
    assert rounded[0] == pytest.approx(exact[0], abs=10 * 2**-11)
    assert rounded == pytest.approx(exact, abs=100 * 2**-11)
    assert rounded != exact
    assert losses(tmp_path / "fp16", "grad/norm")[0] == pytest.approx(
        losses(tmp_path / "fp32", "grad/norm")[0], rel=0.01
    )
    assert set(losses(tmp_path / "fp16", "train/skipped")) == {0}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_whose_scale_was_too_large_is_left_out_and_counted_and_a_resume_goes_on_bit_for_bit(
    tiny, tmp_path, scale, stop_at, optimizer
):
    scale(2.0**24, growth=4)  # it overflows at first, and again whenever it has doubled often enough
    config = tiny(train={"precision": "fp16", "optimizer": optimizer, "log_every": 1})
    train(config, tmp_path / "whole")
    skipped = losses(tmp_path / "whole", "train/skipped")
    assert skipped[0] == 1
    assert 1 < skipped[-1] < 15
    before = [record["grad/norm"] is None for record in records(tmp_path / "whole") if "grad/norm" in record]
    assert sum(before) == skipped[-1]  # the norm of a step that was left out is not finite
    for step in (0, 7, 13):
        train_and_stop(config, tmp_path / "parts", stop_at, step)
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    ends = [load_model(tmp_path / name, CPU)[2]["scaler"] for name in ("parts", "whole")]
    assert ends[0] == ends[1]


def test_a_loss_that_no_scale_can_mend_ends_the_run_at_once(tiny, tmp_path, scale):
    scale(1024.0)
    with pytest.raises(FloatingPointError, match=r"^step [2-4]: the loss is (nan|inf)"):
        train(tiny(train={"precision": "fp16", "lr": 1e4, "warmup": 0.0}), tmp_path / "run")


def test_a_gpu_without_bf16_takes_fp16_and_a_stack_takes_fp32(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "bf16_is_fast", lambda _: False)
    assert pick_precision("auto", torch.device("cuda")) == "fp16"
    assert [pick_precision("auto", torch.device(name)) for name in ("cpu", "mps")] == ["fp32", "fp32"]
    monkeypatch.setattr("training.run.pick_precision", lambda *_: "fp16")
    configs = {tmp_path / str(seed): tiny(train={"seed": seed, "tokens": 128}) for seed in (0, 1)}
    for summary in train_stack(configs).values():
        assert summary is not None
        assert summary["environment"]["precision"] == "fp32"
    asked = [tiny(train={"precision": "fp16"})]
    with pytest.raises(UserError, match="precision = 'fp16' does not go with stacked runs"):
        pick_engine("stacked", asked)
    monkeypatch.setattr("study.plan.engine.pick_device", lambda _: torch.device("cuda"))
    assert pick_engine("auto", asked) == "processes"
