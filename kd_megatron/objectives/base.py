"""What an objective is.

An objective declares what it needs from student and teacher, and turns their outputs into terms. Every term is a
SUM over targets; the step divides it by the number of targets in the whole global batch (`counts`), so that loss and
gradient do not depend on micro-batch split, accumulation, world size or padding (docs/fairness.md, clause 7).
"""

from typing import Literal

from torch import Tensor, nn

from kd_megatron.recipe.config import Strict
from kd_megatron.tensors import Batch, ModelShape, Needs, Taps


class ObjectiveOptions(Strict):
    """Base of the options of an objective, as written in a recipe's arm."""

    objective: str
    inputs: Literal["masked", "clean"] = "masked"  # what student and teacher read


class Objective(nn.Module):
    """Base of all objectives. Its parameters (such as a projection) train with the student's.

    Attributes:
        needs_student: outputs the student must return.
        needs_teacher: outputs the teacher must return. A class that needs none says None in its body, where it can be
            read without a model: no teacher runs, and none is owed anything.
        weights: the factor of each term in the total loss, after its sum is divided by its count.
        teacher_dropout: whether the teacher runs in training mode. A mistake of the study's code; see `as_coded`.
    """

    needs_student: Needs
    needs_teacher: Needs | None
    weights: dict[str, float]
    teacher_dropout: bool = False

    def __init__(self, options: ObjectiveOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__()
        self.options, self.student, self.teacher = options, student, teacher

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The number of targets of each term in ``batch``: float64 scalars. Known before any model runs."""
        raise NotImplementedError

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """The sum of each term over its targets: float32 (or wider) scalars with gradient to the student's taps."""
        raise NotImplementedError

    def flops(self, length: int, num_masked: int) -> float:
        """FLOPs of the loss alone, forward and backward, for one sequence (heads and encoders not included)."""
        raise NotImplementedError
