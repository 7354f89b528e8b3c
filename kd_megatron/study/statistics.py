"""How sure a number is: means with t-intervals, and differences paired by seed.

The interval of n values x_1..x_n is Student's: mean +- t(0.975, n - 1) * s / sqrt(n), with s the sample standard
deviation (n - 1 in its denominator). It assumes independent, roughly normal values; with two or three seeds it is wide,
and that is the honest answer. One value has no interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; ``low`` and ``high`` are None when n is below 2."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there were at least two values."""
        return self.low is not None and self.high is not None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean and Student's t-interval of ``values``; None when there are none (or one of them is not finite)."""
    if not values or not all(math.isfinite(value) for value in values):
        return None
    num = len(values)
    mean = math.fsum(values) / num
    if num == 1:
        return Estimate(1, mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
    from scipy import stats  # here: timing training steps imports this module and needs none of it

    half = float(stats.t.ppf((1 + confidence) / 2, num - 1)) * math.sqrt(variance / num)
    return Estimate(num, mean, mean - half, mean + half)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """``arm`` minus ``reference`` over the seeds both have: pairs share data order and masks, so their noise cancels.

    Args:
        arm: seed -> value.
        reference: seed -> value.
        confidence: of the interval.

    Returns:
        The estimate over the shared seeds, None when they share none.
    """
    shared = sorted(arm.keys() & reference.keys())
    return estimate([arm[seed] - reference[seed] for seed in shared], confidence)
