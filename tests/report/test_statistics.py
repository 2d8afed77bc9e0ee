"""The report's statistics against numbers worked out by hand, scipy's own tests, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cyclical_lr.report import statistics
from cyclical_lr.report.statistics import Interval

# Student's t, 97.5 and 95 %, from a printed table.
T975 = {2: 4.302653, 4: 2.776445, 9: 2.262157}
T95 = {4: 2.131847}

accuracies = st.integers(0, 10_000).map(lambda correct: correct / 100)
samples = st.lists(accuracies, min_size=2, max_size=12)
varied = samples.filter(lambda sample: len(set(sample)) > 1)
few = settings(max_examples=50)  # where scipy makes an example dear
times = st.lists(st.one_of(st.integers(1, 70).map(float), st.just(math.inf)), min_size=2, max_size=8)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


# ---- One sample ------------------------------------------------------------------------------------------------------


def test_an_interval_of_the_mean_is_t_s_over_root_n():
    # 80, 81, 82: mean 81, s = 1.
    half = T975[2] / math.sqrt(3)
    assert statistics.mean_interval([80, 81, 82], 0.95) == pytest.approx((81 - half, 81 + half), abs=1e-5)


@pytest.mark.parametrize(("n", "ends"), [(5, (1, 5)), (10, (2, 9)), (20, (6, 15))])
def test_an_interval_of_the_median_lies_between_order_statistics(n, ends):
    """The printed tables of the sign test: how many of n fair coins are as few as that in one of twenty trials."""
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert statistics.median_interval(values, 0.90) == ends
    covered = 1 - 2 * sum(math.comb(n, k) for k in range(ends[0])) / 2**n
    closer = 1 - 2 * sum(math.comb(n, k) for k in range(ends[0] + 1)) / 2**n
    assert closer < 0.90 <= covered


def test_an_interval_of_the_median_of_too_few_is_unknown():
    assert statistics.median_interval([1, 2, 3, 4], 0.90) == statistics.UNKNOWN
    assert all(map(math.isnan, statistics.median_interval([], 0.90)))


@pytest.mark.parametrize(("runs", "factor"), [(1, 4 / 3), (5, 1 / 5 + 1 / 3)])
def test_a_prediction_interval_adds_the_spread_of_the_new_runs(runs, factor):
    half = T975[2] * math.sqrt(factor)
    assert statistics.prediction_interval([80, 81, 82], runs, 0.95) == pytest.approx((81 - half, 81 + half), abs=1e-5)


def test_a_prediction_interval_is_never_narrower_than_its_floor():
    sample = [81.0, 81.02, 81.04, 81.06, 81.08]  # s = 0.0316: +- 0.096 without the floor
    bare = statistics.prediction_interval(sample, 1, 0.95)
    assert bare.half_width == pytest.approx(T975[4] * 0.0316228 * math.sqrt(1.2), abs=1e-5)
    assert statistics.prediction_interval(sample, 1, 0.95, floor=0.5) == pytest.approx((80.54, 81.54))


def test_a_floor_does_not_widen_what_is_wider():
    sample = [80, 81, 82]
    assert statistics.prediction_interval(sample, 1, 0.95, 0.5) == statistics.prediction_interval(sample, 1, 0.95)


@few
@given(varied, st.sampled_from([0.9, 0.95]))
def test_an_interval_of_the_mean_is_that_of_scipys_t_test(sample, confidence):
    expected = stats.ttest_1samp(sample, 0).confidence_interval(confidence)
    assert statistics.mean_interval(sample, confidence) == pytest.approx((expected.low, expected.high))


def test_one_value_has_no_spread_and_an_infinite_interval():
    assert math.isnan(statistics.std([81]))
    assert statistics.mean([81]) == 81
    assert statistics.mean_interval([81], 0.95) == (-math.inf, math.inf)
    assert statistics.prediction_interval([81], 1, 0.95, 0.5) == (-math.inf, math.inf)
    assert statistics.UNKNOWN.half_width == math.inf


def test_no_value_has_an_undefined_interval():
    assert math.isnan(statistics.mean([]))
    for interval in (statistics.mean_interval([], 0.95), statistics.prediction_interval([], 1, 0.95, 0.5)):
        assert math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("value", [80.1, 81.23, 0.07])  # values whose mean in floating point is not themselves
@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_equal_values_have_a_spread_of_exactly_zero(value, n):
    assert statistics.std([value] * n) == 0
    assert statistics.mean([value] * n) == value
    assert statistics.mean_interval([value] * n, 0.95) == (value, value)


def test_an_interval_holds_its_ends_in_spite_of_rounding():
    assert Interval(80.4 - 0.5, 80.4 + 0.5).holds(80.9)
    assert Interval(80.9 - 0.5, 80.9 + 0.5).holds(80.4)
    assert not Interval(80, 81).holds(81.001) and not Interval(80, 81).holds(79.999)
    assert not statistics.UNDEFINED.holds(80)


# ---- Two samples -----------------------------------------------------------------------------------------------------


def test_welch_on_numbers_done_by_hand():
    # Means 81 and 80, both variances 1, n = 3: se = sqrt(2/3), t = 1.2247449, 4 degrees of freedom.
    a, b = [80, 81, 82], [79, 80, 81]
    half = T95[4] * math.sqrt(2 / 3)
    assert statistics.difference_interval(a, b, 0.90) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    # The t distribution with 4 degrees of freedom in closed form.
    t = 1.2247449
    tail = 0.5 - 0.375 * (t / math.sqrt(1 + t * t / 4)) * (1 - t * t / (12 * (1 + t * t / 4)))
    assert statistics.welch_greater(a, b) == pytest.approx(tail, abs=1e-6)


@few
@given(varied, varied)
def test_welch_is_scipys_welch(a, b):
    test = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    assert statistics.welch_greater(a, b) == pytest.approx(test.pvalue, abs=1e-12)
    both = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert statistics.difference_interval(a, b, 0.9) == pytest.approx((both.low, both.high), rel=1e-9, abs=1e-9)


@few
@given(samples, samples)
def test_the_two_directions_cannot_both_be_shown(a, b):
    assert statistics.welch_greater(a, b) + statistics.welch_greater(b, a) >= 1 - 1e-9


@few
@given(varied, varied, st.sampled_from([0.05, 0.1]))
def test_equivalence_is_shown_exactly_where_the_interval_lies_within_the_margin(a, b, alpha):
    interval = statistics.difference_interval(a, b, 1 - 2 * alpha)
    inside = max(interval.high, -interval.low)
    if abs(inside - 0.5) > 1e-6:
        assert (statistics.tost(a, b, 0.5) <= alpha) == (inside < 0.5)


@few
@given(samples, samples)
def test_equivalence_does_not_depend_on_the_order_of_the_samples(a, b):
    assert statistics.tost(a, b, 0.5) == pytest.approx(statistics.tost(b, a, 0.5), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [([], [80, 81]), ([81], [80, 81]), ([80, 81], [81]), ([], [])])
def test_fewer_than_two_values_on_a_side_show_nothing(a, b):
    assert statistics.welch_greater(a, b) == 1
    assert statistics.tost(a, b, 0.5) == 1
    interval = statistics.difference_interval(a, b, 0.9)
    assert interval == statistics.UNKNOWN or (math.isnan(interval.low) and not (a and b))


def test_without_any_spread_the_means_decide_and_a_tie_shows_nothing():
    assert statistics.welch_greater([81.1] * 3, [81] * 3) == 0
    assert statistics.welch_greater([81] * 3, [81.1] * 3) == 1
    assert statistics.welch_greater([81.1] * 3, [81.1] * 4) == 1
    assert statistics.difference_interval([81.5] * 3, [81] * 3, 0.9) == (0.5, 0.5)


@pytest.mark.parametrize(("a", "b", "p"), [(81, 81, 0), (81.4, 81, 0), (80.9, 80.4, 1), (81.6, 81, 1), (80.4, 81, 1)])
def test_equivalence_without_any_spread_needs_a_difference_below_the_margin(a, b, p):
    assert statistics.tost([a] * 3, [b] * 3, 0.5) == p


def test_spread_on_one_side_alone_is_enough_for_welch():
    # b is constant: the test has a's n - 1 = 2 degrees of freedom, for which the tail is 1/2 - t / (2 sqrt(2 + t^2)).
    t = 1 / (1 / math.sqrt(3))
    assert statistics.welch_greater([80, 81, 82], [80] * 5) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    half = T975[2] / math.sqrt(3)
    assert statistics.difference_interval([80, 81, 82], [80] * 5, 0.95) == pytest.approx((1 - half, 1 + half), abs=1e-5)


# ---- Holm ------------------------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_with_ties_and_claims_that_were_not_tested():
    assert statistics.holm([0.02, 0.02, 1, 1]) == pytest.approx([0.08, 0.08, 1, 1])
    assert statistics.holm([0.3]) == pytest.approx([0.3])
    assert len(statistics.holm([])) == 0


@given(p_values)
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p):
    adjusted = statistics.holm(p)
    assert np.all(adjusted >= np.array(p) - 1e-12)
    assert np.all(adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12)
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)


@given(p_values, st.floats(0.001, 0.2))
def test_holm_rejects_what_its_definition_rejects(p, alpha):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        threshold = alpha / (len(p) - rank)
        if math.isclose(p[index], threshold, rel_tol=1e-9):
            return  # rounding decides there
        if p[index] > threshold:
            break
        rejected.add(index)
    assert set(np.flatnonzero(statistics.holm(p) <= alpha)) == rejected


@given(p_values, st.randoms())
def test_holm_does_not_depend_on_the_order_of_the_family(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    assert statistics.holm([p[i] for i in order]) == pytest.approx(statistics.holm(p)[order])


# ---- Time to target --------------------------------------------------------------------------------------------------

EVALUATIONS = [0, 1000, 2000, 3000, 4000, 5000]


@pytest.mark.parametrize(
    ("curve", "time"),
    [
        ([10, 70, 80, 81, 82, 82], 2000),
        ([10, 80, 79, 80, 80, 79], 3000),  # a blip of one evaluation does not count
        ([10, 70, 79, 79, 79, 80], math.inf),  # the last evaluation has no next one
        ([10, 70, 79, 79, 80, 80], 4000),  # at the target is enough
        ([80, 80, 10, 10, 10, 10], 0),
        ([10, 20, 30, 40, 50, 60], math.inf),
        ([80, 79, 80, 79, 80, 79], math.inf),
    ],
)
def test_time_to_target_is_the_first_evaluation_that_holds_at_the_next(curve, time):
    assert statistics.time_to_target(EVALUATIONS, curve, 80) == time


def test_rounding_does_not_cost_a_target():
    assert 100 * 0.57 < 57
    assert statistics.time_to_target([0, 1, 2], [0, 100 * 0.57, 100 * 0.57], 57) == 1


@pytest.mark.parametrize("curve", [[], [99.0]])
def test_a_curve_of_less_than_two_evaluations_reaches_nothing(curve):
    assert statistics.time_to_target(EVALUATIONS[: len(curve)], curve, 80) == math.inf


@given(st.lists(accuracies, min_size=2, max_size=20), st.integers(50, 90), st.integers(1, 10))
def test_a_higher_target_is_never_reached_earlier(curve, target, more):
    at = range(len(curve))
    assert statistics.time_to_target(at, curve, target) <= statistics.time_to_target(at, curve, target + more)


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([3000, 1000, 2000], 2000),
        ([1000, 2000, math.inf], 2000),
        ([1000, math.inf, math.inf], math.inf),
        ([1000, math.inf], math.inf),
        ([1000, 2000, 4000, math.inf], 3000),
        ([math.inf], math.inf),
    ],
)
def test_misses_take_part_in_the_median(values, median):
    assert statistics.median(values) == median


def test_the_median_of_nothing_is_undefined():
    assert math.isnan(statistics.median([]))


def test_a_ratio_is_b_over_a_and_undefined_for_two_misses():
    assert statistics.ratio(60_000, 20_000) == 3
    assert statistics.ratio(math.inf, 20_000) == math.inf
    assert statistics.ratio(20_000, math.inf) == 0
    for b, a in ((math.inf, math.inf), (0, 0), (math.nan, 1000)):
        assert math.isnan(statistics.ratio(b, a))


SETTINGS = {"resamples": 999, "confidence": 0.95, "seed": 0}


def test_a_bootstrap_of_equal_times_is_their_ratio():
    assert statistics.bootstrap_ratio_of_medians([60] * 5, [20] * 5, **SETTINGS) == (3, 3)


def test_a_bootstrap_gives_the_same_interval_every_time():
    b, a = [50, 60, 70, 55], [20, 25, 22, 30]
    once = statistics.bootstrap_ratio_of_medians(b, a, **SETTINGS)
    assert once == statistics.bootstrap_ratio_of_medians(b, a, **SETTINGS)
    assert once.low < 60 / 23.5 < once.high


def test_a_bootstrap_agrees_with_scipys_where_nothing_is_infinite():
    rng = np.random.default_rng(1)
    b, a = rng.normal(60, 5, 15), rng.normal(20, 2, 15)

    def ratio(b, a, axis):
        return np.median(b, axis=axis) / np.median(a, axis=axis)

    theirs = stats.bootstrap((b, a), ratio, method="percentile", n_resamples=4999, rng=2).confidence_interval
    ours = statistics.bootstrap_ratio_of_medians(b, a, resamples=4999, confidence=0.95, seed=0)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_a_bootstrap_below_two_seeds_is_undefined():
    for b, a in (([60], [20, 30]), ([60, 70], [20]), ([], [])):
        assert all(map(math.isnan, statistics.bootstrap_ratio_of_medians(b, a, **SETTINGS)))


def test_misses_open_a_bootstrap_interval_at_the_end_that_they_concern():
    some_of_b = statistics.bootstrap_ratio_of_medians([60, 60, 60, math.inf, math.inf], [20] * 5, **SETTINGS)
    assert some_of_b == (3, math.inf)
    some_of_a = statistics.bootstrap_ratio_of_medians([60] * 5, [20, 20, 20, math.inf, math.inf], **SETTINGS)
    assert some_of_a == (0, 3)


def test_resamples_without_a_ratio_make_the_interval_as_wide_as_can_be():
    half = [20, 20, 20, math.inf, math.inf]
    assert statistics.bootstrap_ratio_of_medians(half, half, **SETTINGS) == (0, math.inf)
    never = [math.inf] * 3
    assert statistics.bootstrap_ratio_of_medians(never, never, **SETTINGS) == (0, math.inf)


@few
@given(times, times)
def test_a_bootstrap_interval_is_in_order_and_within_what_the_times_allow(b, a):
    interval = statistics.bootstrap_ratio_of_medians(b, a, resamples=99, confidence=0.95, seed=0)
    assert 0 <= interval.low <= interval.high
    if math.isfinite(max(a + b)):
        assert min(b) / max(a) <= interval.low and interval.high <= max(b) / min(a)
