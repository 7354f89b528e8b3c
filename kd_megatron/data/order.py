"""Which window a sample is: blending of sources, nested subsets and epochs, all with random access.

Nothing here is a table of samples or windows: memory does not grow with the pool or with the number of samples, and
any sample index can be asked for at once.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kd_megatron.data import counter_hash

Index = NDArray[np.int64]

_LONGEST_PERIOD = 1 << 20  # samples; weights whose exact period is longer are rounded to a millionth
_NUM_ROUNDS = 8  # of the Feistel network; tests/data/test_order.py tests the uniformity of tiny pools too


def permute(index: Index, size: int, key: int) -> Index:
    """Where a pseudo-random permutation of [0, ``size``), chosen by ``key``, sends each ``index``.

    An alternating Feistel network on the fewest bits that hold ``size``, walked along its cycle until it falls
    below ``size`` (Black and Rogaway, *Ciphers with arbitrary finite domains*, CT-RSA 2002). The domain is less than
    twice ``size``, so a walk has two steps or fewer on average.
    """
    if size == 1:
        return np.zeros_like(index)
    num_bits = max(2, (size - 1).bit_length())
    round_keys = counter_hash.random_bits(key, np.arange(_NUM_ROUNDS))
    values = _feistel(index.astype(np.uint64), num_bits, round_keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        walked = _feistel(values[outside], num_bits, round_keys)
        values[outside] = walked
        outside = outside[walked >= size]
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], num_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low_bits = np.uint64(num_bits // 2)
    low_mask = np.uint64((1 << (num_bits // 2)) - 1)
    high_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for even_key, odd_key in zip(round_keys[0::2], round_keys[1::2], strict=True):
        high ^= counter_hash.random_bits(even_key, low) & high_mask
        low ^= counter_hash.random_bits(odd_key, high) & low_mask
    return (high << low_bits) | low


class Blend:
    """Deals samples out to sources in exact proportion to their weights, for an unbounded sample index.

    The deal is periodic. Within a period of Q samples source i has exactly q_i places, q_i / Q its share, spread
    evenly: its k-th sample stands at (k + 1/2) / q_i of the period. A weight is read as the decimal number it was
    written as, so 0.7 and 0.3 give Q = 10 and shares that are exact; only where that period would exceed 2^20
    samples are shares rounded, to 2^-20. At any prefix a source is within 0.5 + num_sources / 2 of its share.

    Args:
        weights: one positive number for each source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.quotas = _quotas(weights)
        self.period = int(self.quotas.sum())
        places = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self.quotas])
        owners = np.repeat(np.arange(len(weights), dtype=np.int64), self.quotas)
        ranks = np.concatenate([np.arange(quota, dtype=np.int64) for quota in self.quotas])
        dealt = np.argsort(places, kind="stable")  # ties go to the source that is named first
        self._owners, self._ranks = owners[dealt], ranks[dealt]
        self._places = [np.flatnonzero(self._owners == source) for source in range(len(weights))]  # within a period

    def locate(self, samples: Index) -> tuple[Index, Index]:
        """For each sample its source, and its number (from 0) among the samples of that source."""
        cycle, place = np.divmod(samples, self.period)
        sources = self._owners[place]
        return sources, cycle * self.quotas[sources] + self._ranks[place]

    def sample_of(self, source: int, numbers: Index) -> Index:
        """The samples that are those with these ``numbers`` of ``source``: the inverse of `locate`."""
        cycle, rank = np.divmod(numbers, self.quotas[source])
        return cycle * self.period + self._places[source][rank]

    def counts(self, num_samples: int) -> list[int]:
        """How many of the first ``num_samples`` samples come from each source."""
        return [int(count) for count in self.counts_of(np.array([num_samples]))[:, 0]]

    def counts_of(self, nums_samples: Index) -> Index:
        """`counts` of many numbers of samples ([B]) at once: [sources, B]."""
        cycles, rest = np.divmod(nums_samples, self.period)
        partial = np.stack([np.searchsorted(places, rest) for places in self._places])
        return cycles * self.quotas[:, None] + partial


def _quotas(weights: Sequence[float]) -> Index:
    """Places per period: the exact ratio of the weights when it is short, the nearest with 2^20 places otherwise."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= _LONGEST_PERIOD:
        return np.array([int(share * period) for share in shares], np.int64)
    return np.array([max(1, round(share * _LONGEST_PERIOD)) for share in shares], np.int64)
