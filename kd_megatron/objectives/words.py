"""An objective as pages, cards and tables call it."""

from typing import Any

from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import split_arm

AS_CODED = "as the study's code computes it"


def in_words(options: dict[str, Any]) -> str:
    """The options of an arm, as written: ``minilm (num_relation_heads 48)``, ``tinybert, as the study's code ...``.

    Of a combination ``1 x scratch + 0.5 x tinybert``, of a schedule ``scratch until 50 %, then tinybert``.
    """
    rest = dict(options)
    name, as_coded = str(rest.pop("objective", "unknown")), rest.pop("as_coded", False)
    if "phases" in rest:
        return ", then ".join(_phase_in_words(phase) for phase in rest["phases"])
    if "parts" in rest:
        name = " + ".join(_part_in_words(part) for part in rest.pop("parts"))
    said = name + (f" ({', '.join(f'{key} {value}' for key, value in rest.items())})" if rest else "")
    return f"{said}, {AS_CODED}" if as_coded else said


def of_arm_in_words(recipe: StudyRecipe, arm: str) -> str:
    """The objective of an arm with the options that the recipe gives it, such as ``minilm (num_relation_heads 48)``."""
    options, _ = split_arm(recipe.arms[arm])
    return in_words({"objective": arm} | options)


def _part_in_words(part: dict[str, Any]) -> str:
    options = {key: value for key, value in part.items() if key not in ("weight", "name")}
    return f"{part.get('weight', 1.0):g} x {in_words(options)}"


def _phase_in_words(phase: dict[str, Any]) -> str:
    said = in_words({key: value for key, value in phase.items() if key != "until"})
    return said if phase.get("until", 1.0) >= 1.0 else f"{said} until {100 * phase['until']:g} %"
