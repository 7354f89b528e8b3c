"""The objectives by name. A new one is a file beside this one and a line in `OBJECTIVES`."""

from typing import Any

from kd_megatron.config import validate
from kd_megatron.errors import RecipeError, nearest
from kd_megatron.objectives.as_coded import MiniLmAsCoded, TinyBertAsCoded, VanillaKdAsCoded
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.combined import Combined, CombinedOptions
from kd_megatron.objectives.minilm import MiniLm, MiniLmOptions
from kd_megatron.objectives.schedule import ScheduleOptions
from kd_megatron.objectives.scratch import Scratch, ScratchOptions
from kd_megatron.objectives.tinybert import TinyBert, TinyBertOptions
from kd_megatron.objectives.vanilla_kd import VanillaKd, VanillaKdOptions
from kd_megatron.tensors import ModelShape

OBJECTIVES: dict[str, tuple[type[ObjectiveOptions], type[Objective]]] = {
    "scratch": (ScratchOptions, Scratch),
    "vanilla_kd": (VanillaKdOptions, VanillaKd),
    "minilm": (MiniLmOptions, MiniLm),
    "tinybert": (TinyBertOptions, TinyBert),
    "combined": (CombinedOptions, Combined),
}
OPTIONS: dict[str, type[ObjectiveOptions]] = {name: options for name, (options, _) in OBJECTIVES.items()} | {
    "schedule": ScheduleOptions  # of objectives, which are built phase by phase
}
AS_CODED: dict[str, type[Objective]] = {
    "vanilla_kd": VanillaKdAsCoded,
    "minilm": MiniLmAsCoded,
    "tinybert": TinyBertAsCoded,
}


def parse_options(raw: dict[str, Any], where: str) -> ObjectiveOptions:
    """The options of the objective that ``raw["objective"]`` names, validated; ``where`` is named in errors.

    Raises:
        RecipeError: no or an unknown objective, an unknown option (the nearest is named), or a value out of range.
    """
    name = raw.get("objective")
    if name is None:
        raise RecipeError(
            given=f"{where}: missing key objective",
            expected=f"one of {', '.join(OPTIONS)}",
            fix="write objective: NAME in the arm",
        )
    if not isinstance(name, str) or name not in OPTIONS:
        raise RecipeError(given=f"{where}: unknown objective {name!r}; {nearest(str(name), OPTIONS)}")
    return validate(OPTIONS[name], raw, where)


def build(options: ObjectiveOptions, student: ModelShape, teacher: ModelShape | None) -> Objective:
    """The objective that ``options`` belong to; of a schedule, one phase. Parameters come from the default generator.

    Raises:
        ModelError: the two models do not fit each other or the options.
    """
    _, objective = OBJECTIVES[options.objective]
    if getattr(options, "as_coded", False):
        objective = AS_CODED[options.objective]
    return objective(options, student, teacher)
