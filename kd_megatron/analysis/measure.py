"""What arms are ranked by, the score of fine-tuning or the loss that is known of every arm, and their order."""

import math
from dataclasses import dataclass

from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults


@dataclass(frozen=True)
class Measure:
    """What arms are ranked by."""

    quantity: str  # of StudyResults.by_seed
    name: str
    unit: str
    scale: float
    digits: int
    higher_is_better: bool


SCORE = Measure("score", "mean score", "points", 100, 1, True)
OWN_HEAD = Measure("own_loss", "held-out MLM loss (own head)", "nats", 1, 3, False)
PROBE = Measure("probe_loss", "held-out MLM loss (probe)", "nats", 1, 3, False)
MEASURES = (SCORE, OWN_HEAD, PROBE)


@once
def measure_of(results: StudyResults) -> Measure:
    """The protocol's primary measure; without one the fine-tuning score where there is one, else the probe's loss."""
    protocol = results.recipe.protocol
    primary = next((one for one in MEASURES if protocol and one.quantity == protocol.measure), None)
    if primary and any(results.by_seed(arm, primary.quantity) for arm in results.arms):
        return primary
    return SCORE if any(results.by_seed(arm, "score") for arm in results.arms) else PROBE


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
