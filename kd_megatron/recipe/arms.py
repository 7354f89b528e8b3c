"""What an arm of a study really runs: its overrides applied."""

from typing import Any

from kd_megatron.errors import RecipeError, nearest
from kd_megatron.recipe import StudyRecipe, config, diff
from kd_megatron.recipe.config import BUDGET_UNITS

_OVERRIDABLE = [name for name in StudyRecipe.model_fields if not diff.policy_of(StudyRecipe, name).of_study]


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
    raw |= {"arms": {arm: options}, "tuning": None, "protocol": None}  # what tuning chose is an override like any other
    for key, value in overrides.items():
        _refuse_unless_allowed(study, arm, key)
        _set(raw, key, value)
    return config.validate(StudyRecipe, raw, where=f"study {study.name}, arm {arm}")


def _refuse_unless_allowed(study: StudyRecipe, arm: str, key: str) -> None:
    if diff.policy_of(StudyRecipe, key).of_study:
        raise RecipeError(
            given=f"study {study.name}: arm {arm} overrides {key}, which belongs to the whole study",
            expected=f"overrides of {', '.join(_OVERRIDABLE[:-1])} or {_OVERRIDABLE[-1]}",
            fix=f"remove {key} from the arm",
        )
    if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in study.allow_difference):
        raise RecipeError(
            given=f"study {study.name}: arm {arm} overrides {key}",
            expected="arms that differ in their objective's options alone, so that the comparison is fair",
            fix=f"set {key} for the whole study, or add {key!r} to allow_difference: the report will then name it",
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
