"""Blending and permutations: exact shares, true permutations, uniform to the eye of a chi-squared test."""

import itertools

import numpy as np
import pytest
from tolerances import ORDER_CHI_SQUARED_SIGMAS

from kd_megatron.data import counter_hash
from kd_megatron.data.order import Blend, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 100, 1023, 1024, 1025, 65_537])
def test_permute_is_a_permutation(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_has_random_access() -> None:
    whole = permute(np.arange(1000), 1000, key=5)
    some = np.array([999, 3, 3, 500])
    assert np.array_equal(permute(some, 1000, key=5), whole[some])
    assert permute(some[:0], 1000, key=5).size == 0


def test_permute_works_on_pools_beyond_four_billion_windows() -> None:
    size = 3 * 2**40
    sent = permute(np.arange(size - 1000, size), size, key=1)
    assert len(np.unique(sent)) == 1000
    assert sent.min() >= 0
    assert sent.max() < size


def chi_squared_sigmas(counts: np.ndarray) -> float:
    """How many standard deviations the chi-squared statistic of equally likely cells lies above its mean."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [3, 4])
def test_every_permutation_of_a_tiny_pool_is_equally_likely(size: int) -> None:
    keys = [counter_hash.key(7, number) for number in range(6000)]
    found = [tuple(permute(np.arange(size), size, key).tolist()) for key in keys]
    counts = np.array([found.count(order) for order in itertools.permutations(range(size))])
    assert chi_squared_sigmas(counts) < ORDER_CHI_SQUARED_SIGMAS


@pytest.mark.parametrize("size", [10, 50])
def test_each_place_is_equally_likely_to_hold_each_window_and_to_be_followed_by_each(size: int) -> None:
    orders = np.stack([permute(np.arange(size), size, counter_hash.key(8, number)) for number in range(4000)])
    for place in (0, 1, size - 1):
        assert chi_squared_sigmas(np.bincount(orders[:, place], minlength=size)) < ORDER_CHI_SQUARED_SIGMAS
    steps = (orders[:, 1:] - orders[:, :-1]) % size  # never 0; all others alike in a random permutation
    for place in (0, size // 2):
        counts = np.bincount(steps[:, place], minlength=size)[1:]
        assert chi_squared_sigmas(counts) < ORDER_CHI_SQUARED_SIGMAS


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [([1.0], [1]), ([0.7, 0.3], [7, 3]), ([3, 1], [3, 1]), ([1.0, 2.0, 0.5], [2, 4, 1]), ([0.1, 0.1], [1, 1])],
)
def test_shares_are_exact_in_every_period(weights: list[float], quotas: list[int]) -> None:
    blend = Blend(weights)
    assert blend.quotas.tolist() == quotas
    sources, _ = blend.locate(np.arange(5 * blend.period))
    for cycle in sources.reshape(5, blend.period):
        assert np.bincount(cycle).tolist() == quotas


def test_weights_without_a_short_period_are_kept_to_a_millionth() -> None:
    weights = np.array([0.123456789, 0.333333333333, 1e-9])
    quotas = Blend(weights.tolist()).quotas
    assert np.abs(quotas / quotas.sum() - weights / weights.sum()).max() < 2**-20


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 2.0, 0.5], [5, 1, 1, 1], [0.123456789, 0.4]])
def test_prefixes_keep_their_shares_and_each_source_is_numbered_without_gaps(weights: list[float]) -> None:
    blend, num_samples = Blend(weights), 3000
    sources, local = blend.locate(np.arange(num_samples))
    shares = blend.quotas / blend.quotas.sum()
    for source, share in enumerate(shares):
        own = sources == source
        assert np.array_equal(local[own], np.arange(own.sum()))
        drift = np.cumsum(own) - share * np.arange(1, num_samples + 1)
        assert np.abs(drift).max() <= 0.5 + len(weights) / 2
    for prefix in (0, 1, 7, 999, num_samples):
        assert blend.counts(prefix) == np.bincount(sources[:prefix], minlength=len(weights)).tolist()


def test_locate_needs_no_samples_before() -> None:
    blend, far = Blend([0.7, 0.3]), 10**15
    sources, local = blend.locate(np.arange(far, far + 10))
    assert sorted(local[sources == 0].tolist()) == list(range(7 * far // 10, 7 * far // 10 + 7))
