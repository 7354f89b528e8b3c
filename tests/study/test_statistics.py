import math

import pytest
from scipy import stats
from tolerances import HAND_WORKED_STATISTIC_RELATIVE, SCIPY_RELATIVE

from kd_megatron.study.statistics import Estimate, estimate, paired_difference


def test_three_values_by_hand():
    # mean 2, s = 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    found = estimate([1.0, 2.0, 3.0])
    assert found.n == 3
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=HAND_WORKED_STATISTIC_RELATIVE)
    assert found.low == pytest.approx(2.0 - 2.4841377, rel=HAND_WORKED_STATISTIC_RELATIVE)
    assert not found.excludes_zero


def test_two_values_by_hand():
    # mean 0.55, s = 0.1/sqrt(2), standard error 0.05, t(0.975, 1) = 12.7062047
    found = estimate([0.5, 0.6])
    assert found.half_width == pytest.approx(0.05 * 12.7062047, rel=HAND_WORKED_STATISTIC_RELATIVE)


@pytest.mark.parametrize("values", [[0.31, 0.35, 0.33], [1.0, -4.0, 2.5, 8.0, 0.0], [5.0, 5.5]])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_is_scipys(values, confidence):
    found = estimate(values, confidence)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert found.low == pytest.approx(low, rel=SCIPY_RELATIVE)
    assert found.high == pytest.approx(high, rel=SCIPY_RELATIVE)


def test_paired_difference_is_scipys_paired_test():
    arm, reference = {0: 0.31, 1: 0.35, 2: 0.33}, {0: 0.20, 1: 0.26, 2: 0.23}
    found = paired_difference(arm, reference)
    low, high = stats.ttest_rel(list(arm.values()), list(reference.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=SCIPY_RELATIVE)
    assert found.excludes_zero


def test_pairs_are_made_by_seed_and_not_by_position():
    found = paired_difference({2: 5.0, 0: 1.0, 7: 100.0}, {0: 0.5, 2: 3.5, 1: -100.0})
    assert found.n == 2
    assert found.mean == 1.0  # (1 - 0.5 + 5 - 3.5) / 2


def test_one_value_has_no_interval():
    found = estimate([0.7])
    assert found == Estimate(1, 0.7, None, None)
    assert not found.has_interval
    assert not found.excludes_zero
    assert found.half_width is None


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_to_average(values):
    assert estimate(values) is None


def test_no_shared_seed():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_equal_values_have_an_interval_of_no_width():
    found = estimate([0.5, 0.5, 0.5])
    assert (found.low, found.high) == (0.5, 0.5)
