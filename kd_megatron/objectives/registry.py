"""The objectives by name. A new one is a file beside this one and a line in `OBJECTIVES`.

What an arm names may also be made of these: `kd_megatron.objectives.of_arm` knows all kinds.
"""

from collections.abc import Iterable
from typing import Any

from kd_megatron.errors import RecipeError, nearest
from kd_megatron.objectives.as_coded import MiniLmAsCoded, TinyBertAsCoded, VanillaKdAsCoded
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.minilm import MiniLm, MiniLmOptions
from kd_megatron.objectives.scratch import Scratch, ScratchOptions
from kd_megatron.objectives.tinybert import TinyBert, TinyBertOptions
from kd_megatron.objectives.vanilla_kd import VanillaKd, VanillaKdOptions
from kd_megatron.recipe.config import validate
from kd_megatron.tensors import ModelShape, Needs

OBJECTIVES: dict[str, tuple[type[ObjectiveOptions], type[Objective]]] = {
    "scratch": (ScratchOptions, Scratch),
    "vanilla_kd": (VanillaKdOptions, VanillaKd),
    "minilm": (MiniLmOptions, MiniLm),
    "tinybert": (TinyBertOptions, TinyBert),
}
ALONE: dict[str, Any] = {"objective": "scratch"}  # the arm that a study's own teacher is
AS_CODED: dict[str, type[Objective]] = {
    "vanilla_kd": VanillaKdAsCoded,
    "minilm": MiniLmAsCoded,
    "tinybert": TinyBertAsCoded,
}


def parse_simple(raw: dict[str, Any], where: str, composed: Iterable[str] = ()) -> ObjectiveOptions:
    """The options of the simple objective that ``raw["objective"]`` names, validated; ``where`` is named in errors.

    Args:
        raw: the options as written.
        where: for messages.
        composed: the kinds made of others that would be accepted there too, for messages.

    Raises:
        RecipeError: no or an unknown objective, an unknown option (the nearest is named), or a value out of range.
    """
    name, known = raw.get("objective"), [*OBJECTIVES, *composed]
    if name is None:
        raise RecipeError(
            given=f"{where}: missing key objective",
            expected=f"one of {', '.join(known)}",
            fix="write objective: NAME in the arm",
        )
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise RecipeError(given=f"{where}: unknown objective {name!r}; {nearest(str(name), known)}")
    return validate(OBJECTIVES[name][0], raw, where)


def build_simple(options: ObjectiveOptions, student: ModelShape, teacher: ModelShape | None) -> Objective:
    """The objective that ``options`` of `parse_simple` belong to. Parameters come from the default generator.

    Raises:
        ModelError: the two models do not fit each other or the options.
    """
    _, objective = OBJECTIVES[options.objective]
    if getattr(options, "as_coded", False):
        objective = AS_CODED[options.objective]
    built = objective(options, student, teacher)
    needed = learns_from_teacher(options.objective)
    assert needed == (built.needs_teacher is not None), f"{objective.__name__}: say needs_teacher = None in its body"
    return built


def learns_from_teacher(name: str) -> bool:
    """Whether the simple objective ``name`` needs outputs of the teacher, by its class; of one not known here, yes."""
    _, objective = OBJECTIVES.get(name, (None, Objective))
    return getattr(objective, "needs_teacher", Needs()) is not None
