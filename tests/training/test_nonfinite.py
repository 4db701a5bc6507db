"""NaN and infinity in training: caught before the update, named, and by choice left out."""

import pytest
import torch
from helpers import newest, records, same_weights, train_and_stop

from errors import UserError
from model.gpt import GPT
from training import loop, run
from training.loop import train
from training.sample import sample_run

pytestmark = pytest.mark.usefixtures("no_sample")
NAN, INF = float("nan"), float("inf")
# in which step, of what, and the value: of the output of a module in the forward pass, or of one gradient alone
OUTPUTS = [(0, "embedding", NAN), (6, "blocks.0.ffn.act", NAN), (19, "head", INF)]
GRADIENTS = [(7, "blocks.0.ffn.up.weight", NAN), (13, "blocks.1.attn_norm.weight", INF)]


def tensors(model, optimizers):
    """Copies of all weights and of all that the optimisers remember."""
    return [p.detach().clone() for p in model.parameters()] + [
        value.clone() for o in optimizers for slots in o.state.values() for value in slots.values()
    ]


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def inject(monkeypatch):
    """Return a function that puts a value into one number of every given step.

    It returns a dict that gets, for each step, copies of the weights and the optimisers' state before and after.
    """
    take = loop.train_step

    def arrange(steps, where, value):
        now, seen = [-1], {}

        def spoil(tensor):
            if now[0] in steps:
                tensor = tensor.clone()
                tensor.view(-1)[0] = value
            return tensor

        def model_with_hook(*arguments):
            model = GPT(*arguments)
            parameters = dict(model.named_parameters())
            if where in parameters:
                parameters[where].register_hook(spoil)
            else:
                model.get_submodule(where).register_forward_hook(lambda _module, _inputs, output: spoil(output))
            return model

        def step(model, optimizers, tokens_N, config, step, *others):
            before = tensors(model, optimizers)
            now[0] = step
            try:
                return take(model, optimizers, tokens_N, config, step, *others)
            finally:
                now[0] = -1  # scores of the validation set and probes are left alone
                seen[step] = before, tensors(model, optimizers)

        monkeypatch.setattr(run, "GPT", model_with_hook)
        monkeypatch.setattr(loop, "train_step", step)
        return seen

    return arrange


@pytest.mark.parametrize(("step", "where", "value"), OUTPUTS + GRADIENTS)
def test_a_step_that_is_not_finite_is_named_and_never_taken(tiny, tmp_path, inject, step, where, value):
    seen = inject({step}, where, value)
    with pytest.raises(FloatingPointError, match=rf"^step {step + 1}: .* is the (output|gradient) of {where}\. "):
        train(tiny(train={"accumulate": 2}), tmp_path / "run")
    assert max(seen) == step
    assert equal(*seen[step])
    path = newest(tmp_path / "run" / "checkpoints")
    assert (path.name if path else None) == (f"step-{step // 6 * 6:08d}" if step >= 6 else None)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("optimizer", "where"),
    [("adamw", "blocks.0.ffn.act"), ("muon", "blocks.1.ffn.down.weight")],
)
def test_skipped_steps_change_nothing_are_counted_and_resume_exactly(tiny, tmp_path, inject, stop_at, optimizer, where):
    config = tiny(train={"nonfinite": "skip", "optimizer": optimizer})
    bad = {0, 3, 8, 9, 17}
    seen = inject(bad, where, NAN)
    train(config, tmp_path / "whole")
    assert {step for step, (before, after) in seen.items() if equal(before, after)} == bad
    counts = {r["step"]: r["train/skipped"] for r in records(tmp_path / "whole") if "train/skipped" in r}
    assert counts == {2: 1, 4: 2, 6: 2, 8: 2, 10: 4, 12: 4, 14: 4, 16: 4, 18: 5, 20: 5}
    for step in (0, 5, 9):  # after no step that counts, between, and in a bad one
        train_and_stop(config, tmp_path / "parts", stop_at, step)
    train(config, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_a_run_without_a_bad_step_is_the_same_under_either_choice(tiny, tmp_path):
    train(tiny(), tmp_path / "stop")
    train(tiny(train={"nonfinite": "skip"}), tmp_path / "skip")
    skip = records(tmp_path / "skip")
    assert {r.pop("train/skipped", 0) for r in skip} == {0}
    assert skip == records(tmp_path / "stop")
    assert same_weights(tmp_path / "stop", tmp_path / "skip")


def test_of_gradients_that_spread_the_one_nearest_to_the_loss_is_named(tiny, tmp_path, monkeypatch):
    def model_with_hook(*arguments):
        model = GPT(*arguments)

        def spoil(_module, _inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * NAN)

        model.get_submodule("blocks.1.ffn.act").register_forward_hook(spoil)
        return model

    monkeypatch.setattr(run, "GPT", model_with_hook)
    with pytest.raises(FloatingPointError, match=r"^step 1: .* is the gradient of blocks\.1\.ffn\.up\.weight\. "):
        train(tiny(train={"probes": 0}), tmp_path / "run")


def test_a_run_that_diverged_has_no_text_but_a_message(tiny, tmp_path):
    train(tiny(train={"lr": 1e38, "warmup": 0.0, "tokens": 64}), tmp_path / "run")
    with pytest.raises(UserError, match="diverged: its weights are not finite"):
        sample_run(tmp_path / "run", "", 5, 1.0, 0, 1.0, 0, 1, "cpu", None)
