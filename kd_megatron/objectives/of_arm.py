"""The objective of an arm, of whichever kind: a simple one of the registry, several combined, or a schedule."""

from typing import Any

from kd_megatron.objectives import registry
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.combined import Combined, CombinedOptions
from kd_megatron.objectives.schedule import ScheduleOptions
from kd_megatron.recipe.config import validate
from kd_megatron.tensors import ModelShape

COMPOSED: dict[str, type[CombinedOptions] | type[ScheduleOptions]] = {
    "combined": CombinedOptions,
    "schedule": ScheduleOptions,  # of objectives, which are built phase by phase
}


def parse_options(raw: dict[str, Any], where: str) -> ObjectiveOptions:
    """The options of the objective that ``raw["objective"]`` names, validated; ``where`` is named in errors.

    Raises:
        RecipeError: no or an unknown objective, an unknown option (the nearest is named), or a value out of range.
    """
    name = raw.get("objective")
    if isinstance(name, str) and name in COMPOSED:
        return validate(COMPOSED[name], raw, where)
    return registry.parse_simple(raw, where, COMPOSED)


def build(options: ObjectiveOptions, student: ModelShape, teacher: ModelShape | None) -> Objective:
    """The objective that ``options`` belong to; of a schedule, one phase. Parameters come from the default generator.

    Raises:
        ModelError: the two models do not fit each other or the options.
    """
    if isinstance(options, CombinedOptions):
        return Combined(options, student, teacher)
    return registry.build_simple(options, student, teacher)
