import itertools
import math
from fractions import Fraction
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.judge.statistics import (
    Effect,
    at_best_rate,
    block_bootstrap,
    detectable,
    equivalence_power,
    holm,
    lowest_three,
    outcome,
    p_refuted,
    pair,
    paired,
    power,
    pseudo_values,
    seeds_to_decide,
    vertex,
)
from study.judge.verdicts import Finding, claim_verdicts
from study.plan.claims import Prediction

STUDIES = 2000
ABOVE = Prediction("it", "above", ({},), ({},), margin=0.01)


def test_an_effect_equals_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 8, 10, 30):
        arm, reference = rng.normal(3.5, 0.02, n), rng.normal(3.49, 0.02, n)
        effect, truth = paired((arm - reference).tolist()), stats.ttest_rel(arm, reference)
        interval = truth.confidence_interval()
        assert (effect.low, effect.high, effect.p) == pytest.approx((interval.low, interval.high, truth.pvalue))
        assert (effect.mean, effect.sd) == pytest.approx((np.mean(arm - reference), np.std(arm - reference, ddof=1)))
        assert effect.n == n


def test_one_seed_has_no_interval():
    one = paired([0.5])
    assert (one.mean, one.n) == (0.5, 1)
    assert all(map(math.isnan, (one.low, one.high, one.p, one.sd)))
    assert outcome(one, 1, 0.01) == "undecided"


@pytest.mark.parametrize(("value", "p"), [(0.1, 0), (-0.3, 0), (0, 1)])
@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_equal_differences_have_an_interval_of_no_width(value, p, n):
    assert paired([value] * n) == Effect(value, value, value, p, n, 0.0)


def test_pairs_are_made_by_seed_not_by_place():
    assert pair({2: 5.0, 11: 3.0, 1: 4.0}, {1: 3.5, 2: 4.0, 11: 4.0}) == [0.5, 1.0, -1.0]


def test_what_does_not_pair_is_refused_by_name():
    with pytest.raises(ValueError, match=r"do not pair: \[1, 7, 10\] of the arm, \[1, 2\] of the reference"):
        pair({1: 3.0, 7: 3.0, 10: 3.0}, {1: 3.0, 2: 3.0})


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


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(ticks):
    """An adjusted p is the largest Bonferroni p over all subsets that hold the hypothesis (Marcus et al. 1976)."""
    p = [Fraction(tick, 40) for tick in ticks]
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    truth = [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]
    assert holm([float(x) for x in p]) == pytest.approx([float(x) for x in truth])


def effect(mean, low, high, n=5, p=0.001):
    error = (high - low) / 2 / stats.t.ppf(0.975, n - 1)
    return Effect(mean, low, high, p=p, n=n, sd=error * math.sqrt(n))


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "expected"),
    [
        (0.03, 0.02, 0.04, 0.01, "supported"),
        (0.01, 0.001, 0.019, 0.01, "supported"),  # exactly the margin
        (0.03, 0.02, 0.04, 0.05, "undecided"),  # an adjusted p that is not below 5 %
        (0.03, 0.02, 0.04, math.nan, "undecided"),
        (0.03, -0.01, 0.07, 0.2, "undecided"),
        (0.009, 0.001, 0.017, 0.01, "undecided"),  # smaller than what matters, but may be larger
        (0.005, 0.001, 0.009, 0.01, "no effect"),  # real, and too small to matter
        (0.005, -0.001, 0.01, 0.1, "undecided"),  # reaches the margin
        (0.0, -0.009, 0.009, 1.0, "no effect"),
        (-0.03, -0.04, -0.02, 0.01, "opposite"),
        (-0.008, -0.015, -0.001, 0.01, "opposite"),  # a small effect the other way is the other way
        (0.0, -0.5, 0.5, 1.0, "undecided"),
    ],
)
def test_the_outcome_follows_the_rule_in_both_directions(mean, low, high, p, expected):
    assert outcome(effect(mean, low, high), 1, 0.01, p) == expected
    assert outcome(effect(-mean, -high, -low), -1, 0.01, p) == expected
    assert outcome(effect(mean, low, high, n=4), 1, 0.01, p) == "undecided"
    assert outcome(effect(mean, low, high, p=p), 1, 0.01) == expected


def test_p_refuted_is_below_five_percent_where_the_interval_excludes_the_margin():
    rng = np.random.default_rng(0)
    for gap in rng.uniform(-0.02, 0.03, 300):
        one = paired(rng.normal(gap, 0.01, 6).tolist())
        assert (p_refuted(one, 1, 0.01) < 0.05) == (one.high < 0.01)
        assert (p_refuted(one, -1, 0.01) < 0.05) == (one.low > -0.01)
    differences = rng.normal(0, 0.01, 6)
    t = (differences.mean() - 0.01) / stats.sem(differences)
    assert p_refuted(paired(differences.tolist()), 1, 0.01) == pytest.approx(min(1, 2 * stats.t.cdf(t, 5)))


YES, NO, NOTHING, MAYBE = (
    Finding(ABOVE, effect(0.03, 0.02, 0.04, p=0.004)),
    Finding(ABOVE, effect(-0.03, -0.04, -0.02, p=0.004)),
    Finding(ABOVE, effect(0.0, -0.009, 0.009, p=1.0)),
    Finding(ABOVE, effect(0.02, -0.01, 0.05, p=0.2)),
)


def test_a_claim_is_supported_if_all_of_its_predictions_are_and_refuted_if_one_fails():
    assert claim_verdicts([[YES, YES], [YES, MAYBE], [YES, NO], [Finding(ABOVE)]]) == [
        "supported",
        "undecided",
        "refuted",
        "undecided",
    ]
    assert claim_verdicts([[NOTHING]]) == ["refuted"]


def test_holm_goes_over_the_claims_for_supported_and_within_a_claim_for_refuted():
    # A claim's p is the largest of its predictions': 0.02 stays below 5 % for two claims, and not for three.
    near = Finding(ABOVE, effect(0.03, 0.004, 0.056, p=0.02))
    assert claim_verdicts([[YES, near]] * 2) == ["supported"] * 2
    assert claim_verdicts([[YES, near]] * 3) == ["undecided"] * 3
    # p of exceeding the margin: t = −4 on 4 degrees of freedom, twice one-sided 0.0161. Four such tests are too many.
    weak = Finding(ABOVE, Effect(-0.01, -0.0224, -0.0001, p=0.049, n=5, sd=0.02 / 4 * math.sqrt(5)))
    assert weak.outcome == "opposite"
    assert weak.effect is not None
    assert p_refuted(weak.effect, 1, 0.01) == pytest.approx(0.01613, abs=1e-5)
    assert claim_verdicts([[weak, MAYBE]]) == ["refuted"]
    assert claim_verdicts([[weak, MAYBE, MAYBE, MAYBE]]) == ["undecided"]


def supported(effects, adjusted):
    """Whether any arm of a table differs, in either direction. The margin is too small to stand in the way."""
    return any(
        outcome(e, direction, 1e-9, p) == "supported"
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
    assert np.mean([supported(s, holm(row)) for s, row in zip(studies, p, strict=True)]) <= limit
    # The same studies without Holm: the instrument sees an inflated error where there is one.
    assert np.mean([supported(s, row) for s, row in zip(studies, p, strict=True)]) > 0.12


def test_a_true_effect_of_the_size_of_the_margin_is_seldom_refuted():
    """The error of "refuted" is that of one end of the interval."""
    rows = np.random.default_rng(5).normal(0.01, 0.005, (4000, 5)).tolist()
    wrong = np.mean([claim_verdicts([[Finding(ABOVE, paired(row))]])[0] == "refuted" for row in rows])
    assert wrong == pytest.approx(0.025, abs=2.5 * math.sqrt(0.025 * 0.975 / 4000))


def test_power_equals_the_tables():
    # Cohen (1988) and G*Power: a paired t test of d = 0.5 reaches 80 % at 34 pairs, d = 0.8 at 15, d = 0.2 at 199.
    for d, n in ((0.5, 34), (0.8, 15), (0.2, 199)):
        assert power(d, 1, n - 1) < 0.8 <= power(d, 1, n)
        assert seeds_to_decide(Effect(d, -1, 1, 0.5, 5, 1.0), 0.01) == n
    assert power(-0.5, 1, 34) == power(0.5, 1, 34)


def test_the_power_of_an_equivalence_is_about_that_of_a_simulation():
    rng = np.random.default_rng(0)
    for difference, n in ((0.0, 8), (0.005, 20)):
        effects = [paired(row) for row in rng.normal(difference, 0.015, (4000, n)).tolist()]
        truth = np.mean([e.low > -0.015 and e.high < 0.015 for e in effects])
        assert equivalence_power(difference, 0.015, n, 0.015) == pytest.approx(truth, abs=0.08)


def test_seeds_that_would_decide_and_the_smallest_difference_that_is_found():
    noisy = paired([0.06, -0.05, 0.03, -0.02, 0.01])
    assert seeds_to_decide(noisy, 0.0061) is None  # a mean just below the margin: no number of seeds helps
    assert seeds_to_decide(noisy, 0.02) == next(
        n for n in range(5, 1000) if equivalence_power(noisy.mean, noisy.sd, n, 0.02) >= 0.8
    )
    assert power(detectable(noisy), noisy.sd, 5) == pytest.approx(0.8)
    assert math.isnan(detectable(paired([0.1])))
    assert seeds_to_decide(paired([0.1]), 0.01) is None


def test_the_vertex_by_hand():
    # f(0) = 3, f(1) = 1, f(2) = 2: half the second difference is 1.5, and the lowest point 1 + 1/6, 1 − 1/24.
    table = {1.0: {0: 3.0}, 2.0: {0: 1.0}, 4.0: {0: 2.0}}
    assert vertex([1.0, 2.0, 4.0], [3, 1, 2]) == pytest.approx(2 ** (1 + 1 / 6))
    assert at_best_rate(table, table, [0]) == pytest.approx(1 - 1 / 24)
    # Another figure is read off its own parabola there: 10 + 6x.
    assert at_best_rate(table, {1.0: {0: 10}, 2.0: {0: 16}, 4.0: {0: 22}}, [0]) == pytest.approx(10 + 6 * (1 + 1 / 6))
    # Where it opens downward or is flat, the lowest mean stands in. It never leaves the bracket.
    assert vertex([1.0, 2.0, 4.0], [1, 3, 2]) == 1.0
    assert vertex([1.0, 2.0, 4.0], [2, 2, 2]) == 1.0
    assert vertex([1.0, 2.0, 4.0], [1, 2, 4]) == 1.0


def test_the_three_rates_are_the_lowest_mean_and_its_neighbours():
    table = {rate: {0: loss, 1: loss} for rate, loss in {4.0: 2.0, 1.0: 4.0, 2.0: 3.0, 8.0: 2.5}.items()}
    assert lowest_three(table) == [2.0, 4.0, 8.0]
    assert lowest_three({rate: table[rate] for rate in (1.0, 2.0, 4.0)}) is None


def test_the_jackknife_by_hand():
    # The pseudo-values of a mean are the values. Of a square of a mean: 3·4² − 2·3.5² and so on.
    values = {1: 2.0, 4: 3.0, 9: 7.0}
    assert pseudo_values(lambda seeds: fmean(values[s] for s in seeds), [1, 4, 9]) == pytest.approx(values)
    squares = pseudo_values(lambda seeds: fmean(values[s] for s in seeds) ** 2, [1, 4, 9])
    assert squares == pytest.approx({1: 48 - 2 * 25, 4: 48 - 2 * 4.5**2, 9: 48 - 2 * 2.5**2})
    assert pseudo_values(lambda seeds: 5.0, [3]) == {3: 5.0}


@pytest.mark.parametrize(("losses", "block"), [([1, 2, 4, 9], 1), ([1, 2, 4, 9], 2), ([1, 2, 4, 9, 3], 2)])
def test_the_block_bootstrap_against_every_resample(losses, block):
    """All equally likely resamples of a few windows, the last block cut where the windows are full."""
    n = len(losses)
    circle = [[losses[(start + k) % n] for k in range(block)] for start in range(n)]
    resamples = itertools.product(circle, repeat=-(-n // block))
    means = [np.mean(list(itertools.chain(*blocks))[:n]) for blocks in resamples]
    low, high = block_bootstrap(losses, block, draws=100_000)
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975), method="inverted_cdf"), abs=1e-9)


def test_the_block_bootstrap_sees_the_correlation_of_neighbours():
    """AR(1), x_t = ρ x_(t−1) + e: the mean's variance tends to σ²/n · (1 + ρ)/(1 − ρ), four times σ²/n here."""
    rho, n, rng = 0.6, 4000, np.random.default_rng(7)
    noise = rng.normal(size=(60, n))
    series = np.empty_like(noise)
    series[:, 0] = noise[:, 0] / math.sqrt(1 - rho**2)
    for t in range(1, n):
        series[:, t] = rho * series[:, t - 1] + noise[:, t]
    truth = math.sqrt((1 + rho) / (1 - rho) / (1 - rho**2) / n)
    halves = {block: np.mean([np.ptp(block_bootstrap(row, block)) / 2 for row in series]) for block in (1, 50)}
    assert halves[50] == pytest.approx(1.96 * truth, rel=0.05)
    assert halves[1] == pytest.approx(1.96 * truth / 2, rel=0.05)
