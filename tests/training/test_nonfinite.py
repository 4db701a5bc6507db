"""NaN and infinity in training: caught before the update, named, and by choice left out."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import records, same_weights

from errors import Interrupted
from model.gpt import GPT
from training import checkpoint, loop
from training.loop import train

OUTPUTS = ["embedding", "blocks.0.attn", "blocks.0.ffn.act", "blocks.1.ffn.up", "blocks.1", "norm", "head"]
GRADIENTS = ["embedding.weight", "blocks.0.ffn.up.weight", "blocks.1.attn_norm.weight", "blocks.1.ffn.down.weight"]
STEPS = 20


def cases():
    """The steps, where in the network, and what: half in a forward pass, half in one gradient alone."""
    draw = random.Random(0)
    for n in range(20):
        where = draw.choice(GRADIENTS if n % 2 else OUTPUTS)
        yield draw.randrange(STEPS), where, draw.choice([float("nan"), float("inf")])


@pytest.fixture
def inject(monkeypatch):
    """Return a function that puts a value into one number of every given step; it gives back what each step began with.

    What a step began with is a copy of the weights and of the optimisers' state.
    """
    make, take = loop.GPT, loop.train_step

    def arrange(steps, where, value):
        now, seen = [-1], {}

        def spoil(tensor):
            if now[0] in steps:
                tensor = tensor.clone()
                tensor.view(-1)[0] = value
            return tensor

        def model_with_hook(*arguments):
            model = make(*arguments)
            if where in GRADIENTS:
                dict(model.named_parameters())[where].register_hook(spoil)
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

        monkeypatch.setattr(loop, "GPT", model_with_hook)
        monkeypatch.setattr(loop, "train_step", step)
        return seen

    return arrange


def tensors(model, optimizers):
    """Copies of all weights and of all that the optimisers remember."""
    return [p.detach().clone() for p in model.parameters()] + [
        value.clone() for o in optimizers for slots in o.state.values() for value in slots.values()
    ]


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("step", "where", "value"), [*cases()])
def test_a_step_that_is_not_finite_is_named_and_never_taken(tiny, tmp_path, inject, step, where, value):
    seen = inject({step}, where, value)
    with pytest.raises(FloatingPointError, match=rf"at step {step + 1}; .* is the (output|gradient) of {where}\. "):
        train(tiny(), tmp_path / "run")
    assert max(seen) == step
    before, after = seen[step]
    assert equal(before, after)
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert (newest.name if newest else None) == (f"step-{step // 6 * 6:08d}" if step >= 6 else None)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("where", ["blocks.0.ffn.act", "blocks.1.ffn.down.weight"])
def test_skipped_steps_change_nothing_are_counted_and_resume_exactly(tiny, tmp_path, inject, stop_at, optimizer, where):
    config = tiny(train={"nonfinite": "skip", "optimizer": optimizer})
    bad = {0, 3, 8, 9, 17}
    seen = inject(bad, where, float("nan"))
    train(config, tmp_path / "whole")
    assert {step for step, (before, after) in seen.items() if equal(before, after)} == bad
    counts = {r["step"]: r["train/skipped"] for r in records(tmp_path / "whole") if "train/skipped" in r}
    assert counts == {2: 1, 4: 2, 6: 2, 8: 2, 10: 4, 12: 4, 14: 4, 16: 4, 18: 5, 20: 5}
    for step in (5, 9, 13):
        stop_at(step)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts")
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
                output.register_hook(lambda gradient: gradient * float("nan"))

        model.get_submodule("blocks.1.ffn.act").register_forward_hook(spoil)
        return model

    monkeypatch.setattr(loop, "GPT", model_with_hook)
    with pytest.raises(FloatingPointError, match=r"at step 1; .* is the gradient of blocks\.1\.ffn\.up\.weight\. "):
        train(tiny(train={"probes": 0}), tmp_path / "run")


def test_micro_batches_find_the_same_layer(tiny, tmp_path, inject):
    inject({2}, "blocks.1.ffn.up", float("inf"))
    with pytest.raises(FloatingPointError, match=r"at step 3; .* is the output of blocks\.1\.ffn\.up\. "):
        train(tiny(train={"accumulate": 2}), tmp_path / "run")


def test_a_run_whose_checkpoints_know_nothing_of_skipping_goes_on(tiny, tmp_path, stop_at, monkeypatch):
    stop_at(7)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run")
    read = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda path: {k: v for k, v in read(path).items() if k != "skipped"})
    assert train(tiny(), tmp_path / "run")["status"] == "finished"


def test_the_command_ends_with_code_1_and_one_line(corpus, tmp_path):
    small = ["--model.n_layer=1", "--model.n_head=2", "--model.d_model=24", "--model.context=16"]
    wild = ["--train.lr=1e30", "--train.warmup=0", "--train.threads=1", "--train.tokens=6400"]
    command = ["train.py", "configs/single.toml", f"--data.corpus={corpus}", "--data.tokenizer=bytes", *small, *wild]
    done = subprocess.run(
        [sys.executable, *command, f"--out={tmp_path / 'run'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: the loss is ")
    assert done.stderr.count("\n") == 1
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
