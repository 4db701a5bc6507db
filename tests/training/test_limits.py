"""Sizes that are refused before any work: steps above the budget, networks and batches above memory."""

import pytest

from data.dataset import prepare
from errors import UserError
from training import limits
from training.limits import check_budget, check_memory, warn_of_repetition
from training.loop import train


@pytest.fixture
def machine(monkeypatch):
    """A machine with 1 GiB."""
    monkeypatch.setattr(limits, "total_memory", lambda device: 1 << 30)


def test_a_step_above_the_budget_is_refused_with_what_fits(tiny, tmp_path):
    config = tiny(train={"tokens": 63})
    with pytest.raises(
        UserError,
        match=r"a step of 64 tokens.*train\.tokens = 63\..*tokens = 64 or more, or a smaller train\.batch_size",
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_budget(tiny(train={"tokens": 64}))
    check_budget(tiny(train={"tokens": 63, "batch_size": 3}))


@pytest.mark.parametrize("model", [{"n_layer": 10**9}, {"d_model": 2**14}, {}])
def test_what_memory_cannot_hold_is_refused_at_once(tiny, tmp_path, machine, model):
    huge = {"train": {"tokens": 2**50} | ({} if model else {"batch_size": 2**40}), "model": model}
    with pytest.raises(UserError, match=r"need [\d,]+ GiB or more, and this machine has 1 GiB\. Use a smaller value"):
        train(tiny(**huge), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_memory_may_hold_is_not_refused(tiny, machine):
    # A sequence takes 16 * 16 bytes for its tokens and 2 * 3 * 2 * 24 * 16 for queries, keys and values.
    check_memory(tiny(train={"tokens": 2**50, "batch_size": 2**17}))
    with pytest.raises(UserError, match="need 1 GiB or more"):
        check_memory(tiny(train={"tokens": 2**50, "batch_size": 2**18}))


def test_a_network_to_sample_from_needs_its_weights_alone(tiny, machine):
    config = tiny(model={"d_model": 4096, "n_layer": 1})  # 0.77 GiB
    check_memory(config, training=False)
    with pytest.raises(UserError, match="need 3 GiB or more"):
        check_memory(config)


def test_a_text_that_is_read_a_hundred_times_over_gets_a_warning(tiny, capsys):
    data = prepare(tiny().data)
    length = len(data.train.tokens_N)
    for tokens, warned in ((99 * length, False), (100 * length, True)):
        warn_of_repetition(tiny(train={"tokens": tokens}), data)
        assert ("reads the training text 100 times" in capsys.readouterr().err) is warned
