import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.judge.curves import area, at_share, tokens_to, training_seconds
from training.loop import train

CURVE = [(0, 5.0), (100, 4.0), (300, 3.0), (400, 3.5), (500, 2.5)]


@pytest.mark.parametrize(
    ("target", "tokens"),
    [(9, 0), (5, 0), (4.5, 50), (4, 100), (3.25, 250), (3, 300), (2.75, 475), (2.5, 500), (2.49, None)],
)
def test_tokens_to_a_loss_by_hand(target, tokens):
    assert tokens_to(CURVE, target) == tokens


def test_area_by_hand():
    # 100·4.5 + 200·3.5 + 100·3.25 + 100·3 = 1775 nats·tokens over 500 tokens.
    assert area(CURVE) == pytest.approx(3.55)
    assert area(CURVE, start=0) == pytest.approx(3.55)
    # From 200 tokens (loss 3.5): 100·3.25 + 100·3.25 + 100·3 = 950 over 300.
    assert area(CURVE, start=200) == pytest.approx(950 / 300)
    assert area(CURVE, start=400) == pytest.approx(3)


@pytest.mark.parametrize(("share", "loss"), [(0, 5), (0.1, 4.5), (0.2, 4), (0.5, 3.25), (0.7, 3.25), (1, 2.5)])
def test_loss_at_a_share_by_hand(share, loss):
    assert at_share(CURVE, share) == pytest.approx(loss)


def test_a_curve_is_never_extrapolated():
    late = CURVE[1:]
    for share in (0.1, 1.01, -0.1, math.nan):
        with pytest.raises(ValueError, match="covers 100 to 500"):
            at_share(late, share)
    for start in (50, 500, math.nan):
        with pytest.raises(ValueError, match="covers 100 to 500"):
            area(late, start)
    with pytest.raises(ValueError, match="covers 7 to 7"):
        area([(7, 3.0)])
    assert at_share([(7, 3.0)], 1) == 3


def test_seconds_of_training_by_hand():
    speeds = [(100, 50.0), (300, 20.0), (400, 100.0)]  # 2 s, 10 s and 1 s
    assert training_seconds(speeds, [0, 50, 100, 250, 400]) == pytest.approx([0, 1, 2, 9.5, 13])
    assert training_seconds(speeds, [300, 0]) == pytest.approx([12, 0])  # a band runs back to its start


def test_the_seconds_of_a_real_run_add_up_to_those_of_its_steps_alone(tiny, tmp_path):
    summary = train(tiny(), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    speeds = [(record["tokens"], record["perf/tokens_per_s"]) for record in records if "perf/tokens_per_s" in record]
    (end,) = training_seconds(speeds, [summary["tokens"]])
    assert end == pytest.approx(summary["perf/train_seconds"])
    assert end < records[-1]["time"]  # which counts scores and checkpoints too


@pytest.mark.parametrize("bad", [[], [(2, 3.0), (1, 2.0)], [(1, 3.0), (1, 2.0)], [(1, math.nan)]])
@pytest.mark.parametrize("measure", [lambda c: tokens_to(c, 2), area, lambda c: at_share(c, 1)])
def test_a_curve_in_disorder_is_refused(bad, measure):
    with pytest.raises(ValueError, match="in order of tokens"):
        measure(bad)


@st.composite
def curves(draw, falling=False):
    tokens = sorted(draw(st.sets(st.integers(0, 10**6), min_size=2, max_size=12)))
    losses = draw(st.lists(st.integers(1, 10_000), min_size=len(tokens), max_size=len(tokens), unique=falling))
    return [(t, v / 1000) for t, v in zip(tokens, sorted(losses, reverse=True) if falling else losses, strict=True)]


@given(curves(falling=True), st.floats(0, 1))
def test_tokens_to_inverts_a_falling_curve(curve, share):
    tokens, losses = zip(*curve, strict=True)
    target = losses[-1] + share * (losses[0] - losses[-1])
    reached = tokens_to(curve, target)
    assert reached is not None
    assert tokens[0] <= reached <= tokens[-1]
    assert np.interp(reached, tokens, losses) == pytest.approx(target, abs=1e-9)
    assert tokens_to(curve, losses[-1] - 1e-3) is None


@given(curves(), st.floats(0, 0.99))
def test_area_is_a_mean_that_adds_up(curve, share):
    tokens, losses = (np.array(x, dtype=float) for x in zip(*curve, strict=True))
    assert min(losses) - 1e-9 <= area(curve) <= max(losses) + 1e-9
    split = float(tokens[0] + share * (tokens[-1] - tokens[0]))
    loss = float(np.interp(split, tokens, losses))
    before = [*(point for point in curve if point[0] < split), (split, loss)]
    left = area(before) * (split - tokens[0]) if len(before) > 1 else 0
    whole = left + area(curve, start=split) * (tokens[-1] - split)
    assert whole == pytest.approx(area(curve) * (tokens[-1] - tokens[0]))
