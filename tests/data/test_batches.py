import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import eval_windows, spread_windows, train_batch

TOKENS = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_next_tokens():
    x_BT, y_BT = train_batch(TOKENS, seed=1, step=5, batch_size=64, context=16)
    assert x_BT.shape == y_BT.shape == (64, 16)
    assert x_BT.dtype == y_BT.dtype == torch.int64
    assert x_BT.is_contiguous()
    assert y_BT.is_contiguous()
    assert torch.equal(y_BT, x_BT + 1)
    assert torch.equal(x_BT, x_BT[:, :1] + torch.arange(16))


def test_batch_is_a_pure_function_of_seed_and_step():
    def starts(seed, step):
        return train_batch(TOKENS, seed, step, 4, 8)[0][:, 0].tolist()

    first = starts(3, 7)
    np.random.seed(0)
    torch.manual_seed(0)
    starts(9, 9)
    assert starts(3, 7) == first
    assert len({tuple(starts(seed, step)) for seed in range(10) for step in range(10)}) == 100
    assert np.random.default_rng([3, 7]).integers(992, size=4).tolist() == first


def test_every_start_is_drawn_and_none_beyond_the_end():
    x_BT, y_BT = train_batch(TOKENS[:10], 0, 0, 500, 7)
    assert set(x_BT[:, 0].tolist()) == {0, 1, 2}
    assert y_BT.max() == 9


@given(n=st.integers(1, 60), context=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_evaluation_scores_each_token_but_the_first_once(n, context, batch_size):
    batches = list(eval_windows(TOKENS[:n], context, batch_size))
    targets = torch.cat([y_BT.flatten() for _, y_BT in batches]) if batches else torch.empty(0)
    assert targets.tolist() == list(range(1, n))
    for x_BT, y_BT in batches:
        assert torch.equal(y_BT, x_BT + 1)
        assert x_BT.dtype == torch.int64
        assert x_BT.shape[0] <= batch_size
        assert x_BT.shape[1] <= context
    assert sum(x_BT.shape[1] < context for x_BT, _ in batches) == bool((n - 1) % context)


def test_evaluation_windows_by_hand():
    shapes = [tuple(x_BT.shape) for x_BT, _ in eval_windows(TOKENS[:24], 4, 2)]
    assert shapes == [(2, 4), (2, 4), (1, 4), (1, 3)]


@given(n=st.integers(2, 200), context=st.integers(1, 20), n_tokens=st.integers(1, 100))
def test_spread_windows_are_some_of_those_of_evaluation_and_reach_over_the_split(n, context, n_tokens):
    x_BT, y_BT = spread_windows(TOKENS[:n], context, n_tokens)
    assert torch.equal(y_BT, x_BT + 1)
    whole = [x_BT for x_BT, _ in eval_windows(TOKENS[:n], context, 1) if x_BT.shape[1] == context]
    if not whole:
        assert x_BT.tolist() == [list(range(n - 1))]
        return
    starts = x_BT[:, 0].tolist()
    assert set(starts) <= {start for window in whole for start in window[:, 0].tolist()}
    assert len(starts) == min(-(-n_tokens // context), len(whole))
    ends = [*starts[1:], context * len(whole)]
    gaps = [(end - start) // context for start, end in zip(starts, ends, strict=True)]
    assert max(gaps) - min(gaps) <= 1
