"""One arm against another in one quantity: its intervals, its verdict, and what it says of small effects."""

from dataclasses import dataclass, replace

from kd_megatron.analysis.fitness import Objection
from kd_megatron.analysis.statistics import Estimate, verdict
from kd_megatron.study.contrasts import Role

LOSSES = ("probe_loss", "own_loss")
DECIDED = ("better", "worse")
TITLES = {
    "score": "average", "probe_loss": "held-out MLM loss (probe)", "own_loss": "held-out MLM loss (own head)",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One arm against another in one quantity, over the seeds they share; in the quantity's base unit."""

    arm: str
    other: str
    quantity: str  # of StudyResults.by_seed
    task: str | None
    role: Role  # of the family
    difference: Estimate
    corrected: Estimate  # the same with the interval that holds together with its family's
    num_comparisons: int  # in the family
    p_value: float | None
    p_holm: float | None
    effect_size: float | None  # Hedges' g of the paired differences
    smallest_effect: float | None = None  # of interest, where the protocol names one for this quantity
    objection: Objection | None = None  # what takes the verdict away, the gravest

    @property
    def title(self) -> str:
        """The task, or what is averaged."""
        return self.task or TITLES[self.quantity]

    @property
    def is_better(self) -> bool:
        """Whether the arm is ahead; it may be by chance."""
        return self.difference.mean < 0 if self.quantity in LOSSES else self.difference.mean > 0

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` when the corrected interval excludes zero, else why nothing can be said."""
        word = self.objection.word if self.objection else None
        return verdict(self.difference, self.corrected, word, "better" if self.is_better else "worse")

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is ``"better"`` or ``"worse"``."""
        return self.verdict in DECIDED

    @property
    def excludes_small_effects(self) -> bool | None:
        """Whether the corrected interval holds no effect below the smallest of interest; None where none is named."""
        low, high, smallest = self.corrected.low, self.corrected.high, self.smallest_effect
        if low is None or high is None or smallest is None:
            return None
        return low * high > 0 and min(abs(low), abs(high)) >= smallest

    @property
    def is_equivalent(self) -> bool | None:
        """Whether it holds no effect above the smallest of interest; None where none is named, or nothing is judged."""
        low, high, smallest = self.corrected.low, self.corrected.high, self.smallest_effect
        if low is None or high is None or smallest is None or self.objection or low == high:
            return None
        return max(abs(low), abs(high)) <= smallest

    @property
    def reversed(self) -> "Comparison":
        """The same, of the other arm against this one."""
        return replace(
            self,
            arm=self.other,
            other=self.arm,
            difference=_negative(self.difference),
            corrected=_negative(self.corrected),
            effect_size=None if self.effect_size is None else -self.effect_size,
        )


def _negative(value: Estimate) -> Estimate:
    ends = (None if end is None else -end for end in (value.high, value.low))
    return Estimate(value.n, -value.mean, *ends)
