"""What a study compares, known from its recipe before the first step: the families that corrections count.

One report is one family: every arm against the reference, in the probe's loss, the own head's loss, the average score
and each task. A protocol's primary contrasts are a family of their own, which is judged first (docs/statistics.md).
"""

from dataclasses import dataclass
from typing import Literal

from kd_megatron.recipe import StudyRecipe

Role = Literal["primary", "secondary", "exploratory"]


@dataclass(frozen=True)
class Contrast:
    """One arm against the reference in one quantity (`analysis.results.StudyResults.by_seed`)."""

    arm: str
    quantity: str
    task: str | None = None


@dataclass(frozen=True)
class Families:
    """The contrasts of one report."""

    contrasts: tuple[Contrast, ...]  # all, by quantity
    primary: frozenset[Contrast]  # empty without a protocol

    @property
    def num_quantities(self) -> int:
        """Losses, average and tasks."""
        return len({(one.quantity, one.task) for one in self.contrasts})

    @property
    def num_arms(self) -> int:
        """Arms beside the reference."""
        return len({one.arm for one in self.contrasts})

    @property
    def num_decisive(self) -> int:
        """How many contrasts are judged first: the primary ones; all where there is no protocol."""
        return len(self.primary) or len(self.contrasts)

    @property
    def num_among_others(self) -> int:
        """What a pair of two other arms is corrected for: all such pairs in all quantities, and never for less."""
        return max(len(self.contrasts), self.num_quantities * self.num_arms * (self.num_arms - 1) // 2)

    def role(self, contrast: Contrast) -> Role:
        """What a contrast is by the protocol; exploratory without one."""
        if not self.primary:
            return "exploratory"
        return "primary" if contrast in self.primary else "secondary"

    def num_corrected_for(self, contrast: Contrast) -> int:
        """Of a primary contrast the primary ones; of any other all contrasts of the report.

        Secondary ones leave the primary ones' share to pairs of two other arms (docs/statistics.md).
        """
        return len(self.primary) if contrast in self.primary else len(self.contrasts)


def families(recipe: StudyRecipe) -> Families:
    """The contrasts that a recipe's report has, whatever is finished.

    An own head's loss is counted for every arm, whether its objective trains one or not: a family that is too large
    claims less.
    """
    others = [arm for arm in recipe.arms if arm != recipe.reference]
    quantities: list[tuple[str, str | None]] = [("probe_loss", None), ("own_loss", None)]
    if recipe.finetune:
        quantities += [("score", None), *(("task", task.name) for task in recipe.finetune.tasks)]
    contrasts = tuple(Contrast(arm, quantity, task) for quantity, task in quantities for arm in others)
    primary: set[Contrast] = set()
    if protocol := recipe.protocol:
        chosen = others if protocol.arms is None else protocol.arms
        primary = {one for one in contrasts if one.quantity == protocol.measure and one.arm in chosen}
    return Families(contrasts, frozenset(primary))
