"""What arms are ranked by: the score of fine-tuning, or the loss that is known of every arm."""

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


@once
def measure_of(results: StudyResults) -> Measure:
    """The fine-tuning score where there is one, else the probe's loss."""
    return SCORE if any(results.by_seed(arm, "score") for arm in results.arms) else PROBE
