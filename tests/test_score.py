import torch
from torch import nn

from model.activations import ACTIVATIONS, Activation
from training.loop import train
from training.score import score_run


class Drawn(nn.Module):
    """A leaky ReLU whose slope is drawn, and kept in no checkpoint."""

    slope: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.rand(()), persistent=False)

    def forward(self, u):
        return torch.where(u > 0, u, self.slope * u)


def test_a_damaged_checkpoint_is_named_once_and_the_one_before_is_scored(tiny, tmp_path, capsys):
    train(tiny(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000020" / "state.json").unlink()
    capsys.readouterr()
    score_run(tmp_path / "run", "cpu")
    printed = capsys.readouterr()
    assert printed.err.count("warning: step-00000020: state.json is missing") == 1
    assert "step 18" in printed.out


def test_an_activation_that_its_factory_draws_is_the_one_that_was_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "drawn", Activation(Drawn))
    summary = train(tiny(model={"activation": "drawn"}), tmp_path / "run")
    torch.manual_seed(1234)
    assert score_run(tmp_path / "run", "cpu")["val"].loss == summary["val/loss"]
