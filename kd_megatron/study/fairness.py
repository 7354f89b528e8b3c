"""Arms may differ in the objective alone (docs/fairness.md, clauses 1 and 2).

An arm is written as its objective's options, of which `BACKEND` alone must be the same in all arms. A key with a dot,
such as ``training.learning_rate: 5.0e-4``, overrides the study's recipe for that arm alone. Either is refused unless
the study lists it in ``allow_difference``, and then the report names it. `check` judges the recipe before anything is
spent; `run_checks.py` judges what the runs recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kd_megatron import config
from kd_megatron.config import BUDGET_UNITS
from kd_megatron.errors import RecipeError, nearest
from kd_megatron.kernels.door import AUTO
from kd_megatron.schema import StudyRecipe

BACKEND = "backend"  # the one option of an objective that changes its speed alone
STUDY_ONLY = frozenset(
    {"kind", "name", "description", "arms", "seeds", "allow_difference", "output", "notes", "tuning", "markers", "grid"}
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Difference:
    """One key of the resolved recipe that is not the same in all arms."""

    key: str
    values: dict[str, Any]  # arm -> value


def split_arm(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An arm as written -> (options of its objective, dotted overrides of the study)."""
    options = {key: value for key, value in raw.items() if "." not in key}
    overrides = {key: value for key, value in raw.items() if "." in key}
    return options, overrides


def resolve_arm(study: StudyRecipe, arm: str) -> StudyRecipe:
    """The recipe that ``arm`` really runs: its overrides applied, and no other arm in it.

    Raises:
        RecipeError: there is no such arm, an override is not allowed, or it does not validate.
    """
    if arm not in study.arms:
        raise RecipeError(
            given=f"study {study.name} has no arm {arm!r}; {nearest(arm, study.arms)}", fix="name one of its arms"
        )
    options, overrides = split_arm(study.arms[arm])
    raw = study.model_dump(mode="json")
    raw["arms"], raw["tuning"] = {arm: options}, None  # what tuning chose is an override like any other
    for key, value in overrides.items():
        _refuse_unless_allowed(study, arm, key)
        _set(raw, key, value)
    return config.validate(StudyRecipe, raw, where=f"study {study.name}, arm {arm}")


def by_arm(study: StudyRecipe, read: Callable[[StudyRecipe], Value]) -> dict[str, Value]:
    """Arm -> what ``read`` finds in the recipe that it really runs (`resolve_arm`)."""
    return {arm: read(resolve_arm(study, arm)) for arm in study.arms}


def begins_from_teacher(study: StudyRecipe, arm: str) -> bool:
    """Whether the first weights of an arm's students are layers of the teacher; without one they could not exist."""
    return resolve_arm(study, arm).student.initialise.method == "teacher_layers"


def check(study: StudyRecipe) -> list[Difference]:
    """Compare the resolved recipes of all arms; the allowed differences, for the report.

    Raises:
        RecipeError: an arm differs in something that is neither its objective nor listed in ``allow_difference``,
            or an objective's options do not parse.
    """
    from kd_megatron.objectives import registry

    _refuse_unknown_allowances(study)
    resolved = {arm: resolve_arm(study, arm) for arm in study.arms}
    backends = {
        arm: getattr(registry.parse_options(recipe.arms[arm], where=f"study {study.name}, arms.{arm}"), BACKEND, AUTO)
        for arm, recipe in resolved.items()
    }
    return [*_backend_difference(study, backends), *differences(resolved)]


def _backend_difference(study: StudyRecipe, backends: dict[str, str]) -> list[Difference]:
    """An arm on a slower kernel would get fewer steps out of the same hours: refused like any other difference."""
    if _all_equal(list(backends.values())):
        return []
    if BACKEND not in study.allow_difference:
        named = ", ".join(f"{arm}: {backend}" for arm, backend in backends.items())
        raise RecipeError(
            given=f"study {study.name}: arms with kernels of different backends ({named})",
            expected="the same backend in all arms: a slower kernel in one of them is an unfair difference",
            fix=f"remove the key {BACKEND!r}, or add it to allow_difference: the report will then name it",
        )
    return [Difference(BACKEND, dict(backends))]


def differences(resolved: dict[str, StudyRecipe]) -> list[Difference]:
    """Every key outside ``arms`` whose value is not the same in all resolved recipes."""
    flat = {arm: flatten(recipe.model_dump(mode="json", exclude={"arms"})) for arm, recipe in resolved.items()}
    keys = sorted({key for values in flat.values() for key in values})
    found = (Difference(key, {arm: values.get(key) for arm, values in flat.items()}) for key in keys)
    return [difference for difference in found if not _all_equal(list(difference.values.values()))]


def flatten(raw: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    if not isinstance(raw, dict) or not raw:
        return {prefix: raw}
    return {
        key: value
        for name, part in raw.items()
        for key, value in flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _all_equal(values: list[Any]) -> bool:
    return all(value == values[0] for value in values)


def _refuse_unless_allowed(study: StudyRecipe, arm: str, key: str) -> None:
    if key.split(".")[0] in STUDY_ONLY:
        raise RecipeError(
            given=f"study {study.name}: arm {arm} overrides {key}, which belongs to the whole study",
            expected="overrides of data, student, teacher, budget, training, validation or finetune",
            fix=f"remove {key} from the arm",
        )
    if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in study.allow_difference):
        raise RecipeError(
            given=f"study {study.name}: arm {arm} overrides {key}",
            expected="arms that differ in their objective's options alone, so that the comparison is fair",
            fix=f"set {key} for the whole study, or add {key!r} to allow_difference: the report will then name it",
        )


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


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key. One unit of a budget replaces the other units, as on the command line."""
    *parents, leaf = key.split(".")
    section = raw
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise RecipeError(given=f"override {key}: {parent} is not a section", fix="correct the key")
    if parents[-1:] == ["budget"] and leaf in BUDGET_UNITS:
        section.update(dict.fromkeys(BUDGET_UNITS))
    section[leaf] = value
