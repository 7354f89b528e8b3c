"""Rows below the arms of a report, compared with none: what no training reaches, and what the teacher does."""

from typing import Annotated

from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.policy import ON

UNTRAINED, TEACHER = "untrained", "teacher"


class ControlsRecipe(Strict):
    """Which controls a study measures, where it has what they need."""

    untrained: Annotated[bool, ON] = True  # the first weights of the first seed, validated and fine-tuned like students
    teacher: Annotated[bool, ON] = True  # validated like students, and fine-tuned with the first listed seed
