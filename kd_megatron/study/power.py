"""What a number of students can find: the power of the paired t-test at the level that a family of contrasts leaves.

Exact, by the noncentral t distribution (Cohen, *Statistical Power Analysis for the Behavioral Sciences*, 2nd ed. 1988,
chapter 2). Effects are in standard deviations of the paired differences: ones above 2 are common between arms that
share data and first weights.
"""

import math
from functools import cache

ERROR_RATE = 0.05  # chance of any false verdict in a family
VERDICT_EFFECT = 2.0  # standard deviations: what a study must be able to find before it may give a verdict
ENOUGH = 0.8  # chance of finding it
MOST_STUDENTS = 1_000  # where the search for enough ends


@cache
def power(effect: float, num_students: int, num_contrasts: int) -> float:
    """Chance that the two-sided paired t-test finds a difference, at `ERROR_RATE` / ``num_contrasts`` (Bonferroni).

    Args:
        effect: mean of the paired differences over their standard deviation.
        num_students: pairs of students, one for each pretraining seed.
        num_contrasts: of the family that is corrected for.

    Returns:
        In [0, 1]; 0.0 for fewer than two students, which have no test.
    """
    if num_students < 2:
        return 0.0
    from scipy import stats  # here: timing training steps imports this module and needs none of it

    degrees, centre = num_students - 1, abs(effect) * math.sqrt(num_students)
    critical = float(stats.t.isf(ERROR_RATE / max(num_contrasts, 1) / 2, degrees))
    # the other tail by symmetry: scipy's cdf(-critical) of a large centre is nan in places
    return float(stats.nct.sf(critical, degrees, centre) + stats.nct.sf(critical, degrees, -centre))


@cache
def fewest_students(num_contrasts: int) -> int:
    """The fewest students with which an effect of `VERDICT_EFFECT` is found with a chance of `ENOUGH`."""
    return next(num for num in range(2, MOST_STUDENTS) if power(VERDICT_EFFECT, num, num_contrasts) >= ENOUGH)
