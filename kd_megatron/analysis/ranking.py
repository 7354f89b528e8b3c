"""Which arms are best, and which cannot be distinguished from them."""

import math

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.measure import Measure
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults


def _not_told_apart(results: StudyResults, best: str, rest: list[str], measure: Measure) -> list[str]:
    """Those of ``rest`` that ``best`` was picked before, and is not ahead of beyond doubt."""
    found = {arm: comparisons.best_against(results, best, arm, measure.quantity) for arm in rest}
    return [arm for arm, one in found.items() if one is None or one.verdict != "better"]


@once
def ranking(results: StudyResults, measure: Measure) -> list[tuple[str, float, list[int]]]:
    """(arm, mean, seeds), best first; over the seeds that all arms share, where there are any."""
    values = {arm: results.by_seed(arm, measure.quantity) for arm in results.arms}
    values = {arm: found for arm, found in values.items() if found}
    shared = set.intersection(*(set(found) for found in values.values())) if values else set()
    ranked = []
    for arm, found in values.items():
        seeds = sorted(shared or found)
        ranked.append((arm, sum(found[seed] for seed in seeds) / len(seeds), seeds))
    sign = -1.0 if measure.higher_is_better else 1.0
    return sorted(ranked, key=lambda entry: math.inf if math.isnan(entry[1]) else sign * entry[1])
