"""Intervals and tests against hand-worked values, scipy and their own coverage and error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from infotok.evaluation.statistics import holm, mean_and_deviation, paired_interval, paired_p_value, wilson_interval


def test_wilson_interval_matches_the_hand_worked_case_of_8_in_10():
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize(("correct", "total", "level"), [(0, 7, 0.95), (7, 7, 0.95), (437, 1000, 0.99), (1, 3, 0.5)])
def test_wilson_interval_matches_scipy(correct, total, level):
    expected = stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    assert wilson_interval(correct, total, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_stays_in_range_and_touches_the_end_it_observed():
    assert wilson_interval(0, 5)[0] == 0.0
    assert 0 < wilson_interval(0, 5)[1] < 1
    assert wilson_interval(5, 5)[1] == 1.0


@pytest.mark.parametrize(("correct", "total", "level"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_interval_refuses_what_is_no_proportion(correct, total, level):
    with pytest.raises(ValueError, match="must"):
        wilson_interval(correct, total, level)


def test_paired_interval_matches_the_hand_worked_case():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, and t(.975, 2) = 4.302653.
    half = 4.302652730 / math.sqrt(3)
    assert paired_interval([0, 0, 0], [1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-8)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_paired_interval_matches_scipys_paired_t_test(level):
    generator = np.random.default_rng(0)
    baseline = generator.normal(0.7, 0.1, 6)
    treated = baseline + generator.normal(0.03, 0.02, 6)
    expected = stats.ttest_rel(treated, baseline).confidence_interval(level)
    difference, low, high = paired_interval(baseline.tolist(), treated.tolist(), level)
    assert difference == pytest.approx(float((treated - baseline).mean()))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_interval_covers_the_true_difference_as_often_as_it_says():
    generator = np.random.default_rng(1)
    trials, covered = 600, 0
    for _ in range(trials):
        shared = generator.normal(0, 1, 4)
        _, low, high = paired_interval(shared, shared + generator.normal(0.5, 0.2, 4), level=0.9)
        covered += low <= 0.5 <= high
    assert abs(covered / trials - 0.9) < 3.3 * math.sqrt(0.09 / trials)


def test_one_pair_has_a_difference_but_no_interval():
    difference, low, high = paired_interval([0.5], [0.75])
    assert difference == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_differences_give_an_interval_without_width():
    assert paired_interval([1, 2, 3], [2, 3, 4]) == (1, 1, 1)


@pytest.mark.parametrize(("baseline", "treated"), [([1, 2], [1]), ([], [])])
def test_paired_interval_refuses_sides_that_do_not_pair(baseline, treated):
    with pytest.raises(ValueError, match="values"):
        paired_interval(baseline, treated)


def test_paired_p_value_matches_the_hand_worked_case():
    # Differences 1, 2, 3: t = 2 / (1/√3) = 2√3; with two degrees of freedom p = 1 − t / √(2 + t²) = 1 − √(6/7).
    assert paired_p_value([0, 0, 0], [1, 2, 3]) == pytest.approx(1 - math.sqrt(6 / 7), abs=1e-12)
    assert paired_p_value([1, 2, 3], [0, 0, 0]) == pytest.approx(1 - math.sqrt(6 / 7), abs=1e-12)


@pytest.mark.parametrize("pairs", [2, 5, 30])
def test_paired_p_value_matches_scipys_paired_t_test_and_the_interval(pairs):
    generator = np.random.default_rng(pairs)
    baseline = generator.normal(0.7, 0.1, pairs)
    treated = baseline + generator.normal(0.02, 0.03, pairs)
    p = paired_p_value(baseline.tolist(), treated.tolist())
    assert p == pytest.approx(stats.ttest_rel(treated, baseline).pvalue, rel=1e-9)
    for level in (1 - p - 1e-6, 1 - p + 1e-6):  # the interval touches 0 at the level 1 − p
        _, low, high = paired_interval(baseline.tolist(), treated.tolist(), level)
        assert (low > 0 or high < 0) == (level < 1 - p)


def test_paired_p_value_of_one_pair_and_of_differences_without_spread():
    assert math.isnan(paired_p_value([0.5], [0.75]))
    assert paired_p_value([1, 2, 3], [2, 3, 4]) == 0
    assert paired_p_value([0.1, 0.2], [0.1, 0.2]) == 1
    with pytest.raises(ValueError, match="values"):
        paired_p_value([1, 2], [1])


def test_holm_matches_the_hand_worked_case():
    # Sorted .01, .02, .03, .04: 4 × .01, then 3 × .02, then 2 × .03 = .06, then .04 raised to the .06 before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.001, 0.9]) == pytest.approx([1, 0.003, 1])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    first, missing, second = holm([0.04, math.nan, 0.01])
    assert (first, second) == (0.04, 0.02)  # two tests, not three
    assert math.isnan(missing)
    with pytest.raises(ValueError, match="p-values must lie"):
        holm([0.2, 1.1])


def test_holm_lies_between_the_raw_values_and_bonferronis_and_above_benjamini_hochbergs():
    raw = np.random.default_rng(3).uniform(0, 0.2, 12)
    adjusted = np.array(holm(raw.tolist()))
    assert (raw <= adjusted).all()
    assert (adjusted <= np.minimum(1, 12 * raw)).all()
    assert (stats.false_discovery_control(raw) <= adjusted).all()
    assert adjusted.min() == pytest.approx(12 * raw.min())


def test_holm_keeps_the_familywise_error_rate():
    generator = np.random.default_rng(4)
    trials = 2000
    wrong = sum(min(holm(generator.uniform(0, 1, 6).tolist())) <= 0.1 for _ in range(trials))
    # Of independent true hypotheses 1 − (1 − .1/6)^6 = .0960 families have a false rejection.
    assert abs(wrong / trials - 0.0960) < 3.3 * math.sqrt(0.096 * 0.904 / trials)


def test_mean_and_deviation_matches_numpys_sample_deviation():
    values = [0.2, 0.9, 0.4, 0.4]
    assert mean_and_deviation(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_mean_and_deviation_of_one_value_has_no_deviation():
    mean, deviation = mean_and_deviation([0.3])
    assert mean == 0.3
    assert math.isnan(deviation)
    with pytest.raises(ValueError, match="no values"):
        mean_and_deviation([])
