import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.judge.statistics import Effect, area, at_share, block_bootstrap, holm, pair, paired, tokens_to, verdict

STUDIES = 2000


def test_an_effect_equals_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    for n, level in itertools.product((2, 3, 5, 8, 10, 30), (0.9, 0.95, 0.99)):
        arm, reference = rng.normal(3.5, 0.02, n), rng.normal(3.49, 0.02, n)
        effect, truth = paired((arm - reference).tolist(), level), stats.ttest_rel(arm, reference)
        interval = truth.confidence_interval(level)
        assert (effect.low, effect.high, effect.p) == pytest.approx((interval.low, interval.high, truth.pvalue))
        assert (effect.mean, effect.sd) == pytest.approx((np.mean(arm - reference), np.std(arm - reference, ddof=1)))
        assert (effect.n, effect.level) == (n, level)


def test_an_effect_by_hand():
    # Mean 3, sd √2.5, standard error √0.5, t = 3√2 on 4 degrees of freedom, t_.975 = 2.776445.
    effect = paired([1, 2, 3, 4, 5])
    assert (effect.mean, effect.sd, effect.n) == (3, pytest.approx(math.sqrt(2.5)), 5)
    assert (effect.low, effect.high) == pytest.approx((3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)))
    assert effect.p == pytest.approx(0.013236, abs=5e-6)


def test_one_seed_has_no_interval():
    effect = paired([0.5])
    assert (effect.mean, effect.n) == (0.5, 1)
    assert all(map(math.isnan, (effect.low, effect.high, effect.p, effect.sd)))
    assert verdict(effect, 1, effect.p) == ("not shown", "a verdict needs 5 seeds or more, not 1")
    assert verdict(effect, 1, effect.p, minimum_seeds=1)[0] == "not shown"


@pytest.mark.parametrize(("value", "p"), [(0.1, 0), (-0.3, 0), (0, 1)])
@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_equal_differences_have_an_interval_of_no_width(value, p, n):
    assert paired([value] * n) == Effect(value, value, value, p, n, 0.0)


def test_an_effect_and_a_verdict_refuse_what_has_no_meaning():
    for bad in ([], [0.1, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="one finite difference or more"):
            paired(bad)
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired([1, 2], 95)
    with pytest.raises(ValueError, match=r"\+1 or -1, not 0"):
        verdict(effect(0.03, 0.02, 0.04), 0, 0.01)  # pyright: ignore[reportArgumentType]


def test_pairs_are_made_by_seed_not_by_place():
    assert pair({2: 5.0, 11: 3.0, 1: 4.0}, {1: 3.5, 2: 4.0, 11: 4.0}) == [0.5, 1.0, -1.0]


def test_what_does_not_pair_is_refused_by_name():
    with pytest.raises(ValueError, match=r"do not pair: \[1, 7, 10\] of the arm, \[1, 2\] of the reference"):
        pair({1: 3.0, 7: 3.0, 10: 3.0}, {1: 3.0, 2: 3.0})
    with pytest.raises(ValueError, match=r"no finite difference: seeds \[2, 3\]"):
        pair({1: 3.0, 2: math.nan, 3: 4.0}, {1: 3.0, 2: 3.0, 3: math.inf})


def test_holm_by_hand():
    # Sorted: .005·4 = .02, .01·3 = .03, .03·2 = .06, then .04·1 = .04, raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([0.02, 0.02]) == [0.04, 0.04]


def test_holm_leaves_out_what_was_not_tested():
    assert holm([math.nan, 0.01, math.nan, 0.04]) == pytest.approx([math.nan, 0.02, math.nan, 0.04], nan_ok=True)
    assert holm([math.nan]) == pytest.approx([math.nan], nan_ok=True)


def test_holm_refuses_what_is_no_probability():
    for bad in (-0.01, 1.01):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, bad])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(ticks):
    """An adjusted p is the largest Bonferroni p over all subsets that hold the hypothesis (Marcus et al. 1976)."""
    p = [Fraction(tick, 40) for tick in ticks]
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    truth = [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]
    assert holm([float(x) for x in p]) == pytest.approx([float(x) for x in truth])


def effect(mean, low, high, n=5):
    return Effect(mean, low, high, p=0.001, n=n, sd=0.01)


@pytest.mark.parametrize(
    ("mean", "low", "high", "p_holm", "expected"),
    [
        (0.03, 0.02, 0.04, 0.01, "supported"),
        (0.01, 0.001, 0.019, 0.01, "supported"),  # exactly the smallest effect
        (0.03, 0.02, 0.04, 0.05, "not shown"),  # Holm: not below 5 %
        (0.03, 0.02, 0.04, math.nan, "not shown"),
        (0.03, 0.0, 0.06, 0.01, "not shown"),  # 0 is not excluded
        (0.03, -0.01, 0.07, 0.2, "not shown"),
        (0.009, 0.001, 0.017, 0.01, "not shown"),  # smaller than what matters, but may be larger
        (0.005, 0.001, 0.009, 0.01, "refuted"),  # real, and too small to matter
        (0.005, 0.0, 0.01, 0.01, "not shown"),  # reaches the smallest effect
        (0.0, -0.009, 0.009, 1.0, "refuted"),
        (-0.03, -0.04, -0.02, 0.01, "refuted"),  # the other way
        (0.0, -0.5, 0.5, 1.0, "not shown"),
    ],
)
def test_the_verdict_follows_the_rule_in_both_directions(mean, low, high, p_holm, expected):
    assert verdict(effect(mean, low, high), 1, p_holm)[0] == expected
    assert verdict(effect(-mean, -high, -low), -1, p_holm)[0] == expected
    assert verdict(effect(mean, low, high, n=4), 1, p_holm)[0] == "not shown"
    assert verdict(effect(mean, low, high, n=4), 1, p_holm, minimum_seeds=4)[0] == expected


def test_the_verdict_says_why():
    assert verdict(effect(0.03, 0.02, 0.04), 1, 0.012)[1] == (
        "the mean +0.0300 has the 95 % interval [+0.0200, +0.0400], Holm-adjusted p = 0.012 (n = 5)"
    )
    assert verdict(effect(0.03, 0.02, 0.04), -1, 0.01) == (
        "refuted",
        "the whole 95 % interval [+0.0200, +0.0400] lies above -0.01 (n = 5)",
    )
    assert "not after Holm: p = 0.08" in verdict(effect(0.03, 0.02, 0.04), 1, 0.08)[1]
    assert "falls short of -0.02, but its 95 %" in verdict(effect(-0.015, -0.03, -0.01), -1, 0.01, smallest=0.02)[1]


def supported(effects, adjusted):
    """Whether any claim of a table, in either direction, is supported. No smallest effect stands in the way."""
    return any(
        verdict(e, direction, p, smallest=0)[0] == "supported"
        for e, p in zip(effects, adjusted, strict=True)
        for direction in (1, -1)
    )


@pytest.mark.parametrize("shared", [True, False], ids=["one reference", "a reference each"])
def test_the_family_wise_error_over_null_studies_is_at_most_five_percent(shared):
    """Six arms of five seeds that differ in nothing: seeds shift all arms alike, noise tells them apart."""
    rng = np.random.default_rng(1)
    trunk = 3.5 + rng.normal(0, 0.05, (STUDIES, 1, 5))
    arms = trunk + rng.normal(0, 0.01, (STUDIES, 5, 5))
    references = np.broadcast_to(trunk + rng.normal(0, 0.01, (STUDIES, 1 if shared else 5, 5)), arms.shape)
    studies = [
        [paired(pair(dict(enumerate(a)), dict(enumerate(r)))) for a, r in zip(*study, strict=True)]
        for study in zip(arms.tolist(), references.tolist(), strict=True)
    ]
    p = [[e.p for e in study] for study in studies]
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert np.mean([min(holm(row)) < 0.05 for row in p]) <= limit
    assert np.mean([supported(s, holm(row)) for s, row in zip(studies, p, strict=True)]) <= limit
    # The same studies without Holm: the instrument sees an inflated error where there is one.
    assert np.mean([supported(s, row) for s, row in zip(studies, p, strict=True)]) > 0.12


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    effects = [paired(row) for n in (5, 8) for row in rng.normal(0.03, 0.005, (5000, n)).tolist()]
    assert np.mean([e.low <= 0.03 <= e.high for e in effects]) == pytest.approx(0.95, abs=0.007)


def test_a_planted_effect_is_found_and_a_null_effect_refuted():
    """Nats: 0.03 with sd 0.005 in one arm, 0 in the other four of the table; five seeds."""
    differences = np.random.default_rng(3).normal(0, 0.005, (STUDIES, 5, 5))
    differences[:, 0] += 0.03
    planted, null = [], []
    for study in differences.tolist():
        effects = [paired(row) for row in study]
        adjusted = holm([e.p for e in effects])
        verdicts = [verdict(e, 1, p)[0] for e, p in zip(effects, adjusted, strict=True)]
        planted.append(verdicts[0])
        null += verdicts[1:]
    assert planted.count("supported") / STUDIES >= 0.95
    assert null.count("supported") / len(null) <= 0.05
    assert null.count("refuted") / len(null) >= 0.85


def test_a_true_effect_of_the_smallest_size_is_seldom_refuted():
    """The error of "refuted" is that of one end of the interval."""
    rows = np.random.default_rng(5).normal(0.01, 0.005, (8000, 5)).tolist()
    wrong = np.mean([verdict(paired(row), 1, 1.0)[0] == "refuted" for row in rows])
    assert wrong == pytest.approx(0.025, abs=2.5 * math.sqrt(0.025 * 0.975 / 8000))


@pytest.mark.parametrize(("losses", "block"), [([1, 2, 4, 9], 1), ([1, 2, 4, 9], 2), ([1, 2, 4, 9, 3], 2)])
def test_the_block_bootstrap_against_every_resample(losses, block):
    """All equally likely resamples of a few windows, the last block cut where the windows are full."""
    n = len(losses)
    circle = [[losses[(start + k) % n] for k in range(block)] for start in range(n)]
    resamples = itertools.product(circle, repeat=-(-n // block))
    means = [np.mean(list(itertools.chain(*blocks))[:n]) for blocks in resamples]
    error, low, high = block_bootstrap(losses, block, draws=100_000, seed=0)
    assert error == pytest.approx(np.std(means), rel=0.01)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975), method="inverted_cdf"), abs=1e-9)


def test_the_block_bootstrap_of_independent_windows_is_the_textbook_error():
    losses = np.random.default_rng(6).normal(3.5, 0.4, 4000)
    analytic = losses.std() / math.sqrt(4000)
    for block in (1, 10):
        error, low, high = block_bootstrap(losses.tolist(), block, draws=2000, seed=1)
        assert error == pytest.approx(analytic, rel=0.1)
        assert (low, high) == pytest.approx(
            stats.norm.interval(0.95, losses.mean(), analytic), abs=0.1 * analytic * 1.96
        )


def test_the_block_bootstrap_sees_the_correlation_of_neighbours():
    """AR(1), x_t = ρ x_(t−1) + e: the mean's variance tends to σ²/n · (1 + ρ)/(1 − ρ), four times σ²/n here."""
    rho, n, rng = 0.6, 4000, np.random.default_rng(7)
    noise = rng.normal(size=(60, n))
    series = np.empty_like(noise)
    series[:, 0] = noise[:, 0] / math.sqrt(1 - rho**2)
    for t in range(1, n):
        series[:, t] = rho * series[:, t - 1] + noise[:, t]
    truth = math.sqrt((1 + rho) / (1 - rho) / (1 - rho**2) / n)
    errors = {b: np.mean([block_bootstrap(row, b, 200, seed=i)[0] for i, row in enumerate(series)]) for b in (1, 50)}
    assert errors[50] == pytest.approx(truth, rel=0.05)
    assert errors[1] == pytest.approx(truth / 2, rel=0.05)


def test_the_block_bootstrap_refuses_what_has_no_error_and_repeats_with_its_seed():
    for losses, block, draws in (([], 1, 10), ([1, 2, 3], 2, 10), ([1, 2, math.nan, 4], 1, 10), ([1, 2, 3, 4], 2, 1)):
        with pytest.raises(ValueError, match="two blocks or more"):
            block_bootstrap(losses, block, draws, seed=0)
    losses = np.random.default_rng(8).normal(size=50).tolist()
    first = block_bootstrap(losses, 5, 100, seed=3)
    assert block_bootstrap(losses, 5, 100, seed=3) == first
    assert block_bootstrap(losses, 5, 100, seed=4) != first


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
