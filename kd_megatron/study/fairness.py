"""Arms may differ in the objective alone (docs/fairness.md, clauses 1 and 2).

An arm is written as its objective's options, of which `BACKEND` alone must be the same in all arms. A key with a dot,
such as ``training.learning_rate: 5.0e-4``, overrides the study's recipe for that arm alone. Either is refused unless
the study lists it in ``allow_difference``, and then the report names it. `check` judges the recipe before anything is
spent; `run_checks.py` judges what the runs recorded.
"""

from typing import Any

from kd_megatron.errors import RecipeError, nearest
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import resolve_arm
from kd_megatron.recipe.diff import Difference, all_equal, differences, flatten

BACKEND = "backend"  # the one option of an objective that changes its speed alone


def check(study: StudyRecipe) -> list[Difference]:
    """Compare the resolved recipes of all arms; the allowed differences, for the report.

    Raises:
        RecipeError: an arm differs in something that is neither its objective nor listed in ``allow_difference``,
            or an objective's options do not parse.
    """
    _refuse_unknown_allowances(study)
    resolved = {arm: resolve_arm(study, arm) for arm in study.arms}
    return [*_backend_difference(study, _backends(study, resolved)), *differences(resolved)]


def allowed(study: StudyRecipe, resolved: dict[str, StudyRecipe]) -> list[Difference]:
    """The same of a study that has begun, whose options were parsed then, and whose arms are resolved already.

    The objectives, and torch with them, are asked only where an arm names a backend.
    """
    _refuse_unknown_allowances(study)
    backends = _backends(study, resolved) if _names_backend(list(study.arms.values())) else {}
    return [*_backend_difference(study, backends), *differences(resolved)]


def _names_backend(options: Any) -> bool:
    """Whether an objective's options, or those of its parts and phases, have the key."""
    if isinstance(options, dict):
        return BACKEND in options or any(map(_names_backend, options.values()))
    return isinstance(options, list) and any(map(_names_backend, options))


def _backends(study: StudyRecipe, resolved: dict[str, StudyRecipe]) -> dict[str, str]:
    """Arm -> the backend that its objective asks for."""
    from kd_megatron.kernels.door import AUTO
    from kd_megatron.objectives import of_arm

    return {
        arm: getattr(of_arm.parse_options(recipe.arms[arm], where=f"study {study.name}, arms.{arm}"), BACKEND, AUTO)
        for arm, recipe in resolved.items()
    }


def _backend_difference(study: StudyRecipe, backends: dict[str, str]) -> list[Difference]:
    """An arm on a slower kernel would get fewer steps out of the same hours: refused like any other difference."""
    if all_equal(backends.values()):
        return []
    if BACKEND not in study.allow_difference:
        named = ", ".join(f"{arm}: {backend}" for arm, backend in backends.items())
        raise RecipeError(
            given=f"study {study.name}: arms with kernels of different backends ({named})",
            expected="the same backend in all arms: a slower kernel in one of them is an unfair difference",
            fix=f"remove the key {BACKEND!r}, or add it to allow_difference: the report will then name it",
        )
    return [Difference(BACKEND, dict(backends))]


def _refuse_unknown_allowances(study: StudyRecipe) -> None:
    known = flatten(study.model_dump(mode="json", exclude={"arms"}))
    sections = {".".join(name.split(".")[:depth]) for name in known for depth in range(1, name.count(".") + 2)}
    for key in study.allow_difference:
        if key not in {*sections, BACKEND}:
            raise RecipeError(
                given=f"study {study.name}: allow_difference names {key!r}, which is no key of a recipe; "
                + nearest(key, known),
                expected="dotted keys such as training.learning_rate, or a section such as training",
                fix="correct or remove it",
            )
