import math

import numpy
import pytest
from scipy import stats
from tolerances import HAND_WORKED_STATISTIC_RELATIVE, SCIPY_RELATIVE

from benchmarks.finetune.finetune_scores import unpaired_difference
from kd_megatron.analysis.statistics import (
    FEWEST_FOR_BOOTSTRAP,
    Estimate,
    estimate,
    hedges_g,
    holm,
    judged,
    paired_difference,
    paired_p_value,
    simultaneous_confidence,
    variance_components,
)
from kd_megatron.errors import RecipeError


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


def test_unpaired_difference_is_welchs_by_hand():
    own, reference = [1.0, 2.0, 3.0], [0.0, 4.0, 2.0, 2.0]
    errors = [1.0 / 3, (8 / 3) / 4]  # variance / n of each
    degrees = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 3)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(sum(errors))
    found = unpaired_difference(own, reference)
    assert (found.n, found.mean) == (3, 0.0)
    assert (found.low, found.high) == pytest.approx((-half, half), rel=SCIPY_RELATIVE)


def test_unpaired_difference_without_variation_has_no_interval():
    found = unpaired_difference([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert (found.mean, found.has_interval) == (0.25, False)
    assert unpaired_difference([0.5, math.nan], [0.25, 0.25]) is None


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
    assert not found.excludes_zero  # a model at chance scores the same with every seed: that is no evidence


def test_holm_by_hand():
    # m = 4, sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 = 0.02, 0.03, 0.06, 0.04, and the last may not decrease
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_of_1979_rejects():
    generator = numpy.random.default_rng(0)
    for _ in range(200):
        p_values = list(generator.uniform(0, 0.05, 6))
        rejected, order = set(), sorted(range(6), key=lambda index: p_values[index])
        for place, index in enumerate(order):
            if p_values[index] > 0.05 / (6 - place):
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_hedges_g_by_hand():
    # differences 1, 2, 3, 6: mean 3, s = sqrt(14/3); J(3) = Gamma(1.5) / (sqrt(1.5) Gamma(1)) = 0.8862269 / 1.2247449
    found = hedges_g([1.0, 2.0, 3.0, 6.0])
    assert found == pytest.approx(
        3 / math.sqrt(14 / 3) * 0.8862269255 / 1.2247448714, rel=HAND_WORKED_STATISTIC_RELATIVE
    )
    assert hedges_g([-1.0, -2.0, -3.0, -6.0]) == -found


def test_hedges_g_has_no_bias_in_small_samples():
    # the mean of 40,000 values whose deviation is below 2 lies within 4 * 2 / 200 of its expectation
    samples = numpy.random.default_rng(1).normal(0.8, 1.0, (40_000, 5))
    assert numpy.mean([hedges_g(list(sample)) for sample in samples]) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, 2.0], [2.0, 2.0, 2.0]])
def test_hedges_g_where_there_is_none(differences):
    assert hedges_g(differences) is None


def test_p_value_is_scipys_paired_test():
    arm, reference = [0.31, 0.35, 0.33], [0.20, 0.26, 0.25]
    found = paired_p_value([a - b for a, b in zip(arm, reference, strict=True)])
    assert found == pytest.approx(stats.ttest_rel(arm, reference).pvalue, rel=1e3 * SCIPY_RELATIVE)
    assert paired_p_value([0.1]) is None
    assert paired_p_value([0.1, 0.1]) is None


def test_simultaneous_intervals_hold_together():
    assert simultaneous_confidence(1) == pytest.approx(0.95)
    assert simultaneous_confidence(5) == pytest.approx(0.99)
    generator, held = numpy.random.default_rng(2), 0
    for _ in range(1000):  # three arms of four seeds; 0.95 +- 4 * sqrt(0.95 * 0.05 / 1000)
        found = [estimate(list(row), simultaneous_confidence(3)) for row in generator.normal(0, 1, (3, 4))]
        held += all(one.low < 0 < one.high for one in found)
    assert 920 < held < 980


def test_bootstrap_is_scipys_and_repeatable():
    values = list(numpy.random.default_rng(3).exponential(1.0, 20))
    found = estimate(values, method="bootstrap")
    expected = stats.bootstrap((values,), numpy.mean, n_resamples=9999, method="BCa", rng=20_240_619)
    assert (found.low, found.high) == tuple(expected.confidence_interval)
    assert estimate(values, method="bootstrap") == found
    assert found.high - found.mean > found.mean - found.low  # a skewed sample has a skewed interval


def test_bootstrap_of_too_few_seeds_is_refused():
    with pytest.raises(RecipeError, match=r"bootstrap interval of 3 values[\s\S]*at least 10 seeds[\s\S]*--interval t"):
        estimate([1.0, 2.0, 3.0], method="bootstrap")
    same = estimate([0.5] * FEWEST_FOR_BOOTSTRAP, method="bootstrap")
    assert (same.low, same.high) == (0.5, 0.5)


def test_variance_components_by_hand():
    # students' means 2, 4, 9, grand mean 5: between = 2 (9 + 1 + 16) / 2 = 26; within = (2 + 2 + 8) / 3 = 4
    found = variance_components([[1.0, 3.0], [3.0, 5.0], [7.0, 11.0]])
    assert found.finetuning == pytest.approx(2.0)
    assert found.pretraining == pytest.approx(math.sqrt((26 - 4) / 2))
    assert (found.num_students, found.num_scores) == (3, 6)


def test_variance_components_find_what_was_planted():
    generator = numpy.random.default_rng(4)
    students = generator.normal(0, 3.0, 400)
    found = variance_components([list(student + generator.normal(0, 1.5, 3)) for student in students])
    # a deviation estimated from 400 values is within 4 / sqrt(2 * 400) of itself: 14 %
    assert found.pretraining == pytest.approx(3.0, rel=0.14)
    assert found.finetuning == pytest.approx(1.5, rel=0.14)


def test_variance_components_of_unequal_numbers():
    # n0 = (5 - 13 / 5) / 1 = 2.4; grand mean 3.2; between = 3 * 0.04 + 2 * 0.09 = 0.3 < within = (2 + 2) / 3
    found = variance_components([[2.0, 3.0, 4.0], [2.5, 4.5]])
    assert found.pretraining == 0.0
    assert found.finetuning == pytest.approx(math.sqrt(4 / 3))


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], [[1.0], [2.0], [3.0]], [[1.0, 2.0], [3.0]]])
def test_variance_components_need_two_by_two(scores):
    assert variance_components(scores) is None


def test_a_family_counts_those_without_a_value_too():
    values = [[0.1, 0.2, 0.3], [0.5, 0.4, 0.6]]
    found = judged(values, "t", 5)
    p_values = [stats.ttest_1samp(one, 0.0).pvalue for one in values]
    assert [one[3] for one in found] == pytest.approx(p_values)
    assert [one[4] for one in found] == pytest.approx(holm([*p_values, 1.0, 1.0, 1.0])[:2])
    assert {one[2] for one in found} == {5}
    assert found[0][1] == estimate(values[0], simultaneous_confidence(5))
    assert judged([*values, [math.nan]], "t", 5)[2] is None


def test_what_is_corrected_is_students_t_whatever_is_asked_for():
    values = [0.1 * number**2 for number in range(FEWEST_FOR_BOOTSTRAP)]
    [(plain, corrected, *_)] = judged([values], "bootstrap", 20)
    assert plain == estimate(values, method="bootstrap")
    assert corrected == estimate(values, simultaneous_confidence(20))
