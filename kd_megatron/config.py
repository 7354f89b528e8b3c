"""Reading a recipe: YAML file + dotted overrides -> a validated, frozen object.

`load` is the only way in. Unknown keys name the nearest known one; every error names the file and the key.
"""

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kd_megatron.errors import RecipeError, nearest


class Strict(BaseModel):
    """Base of all recipe sections: unknown keys are errors, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Recipe = TypeVar("Recipe", bound=BaseModel)


def load(path: Path | str, schema: type[Recipe], overrides: list[str] | None = None) -> Recipe:
    """Read the recipe at ``path``, apply ``overrides`` (``"budget.hours=0.1"``), validate against ``schema``."""
    raw = read_yaml(path)
    for override in overrides or []:
        apply_override(raw, override)
    return validate(schema, raw, where=str(path))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `RecipeError` when the file is absent, unreadable or not a mapping."""
    path = Path(path)
    if not path.is_file():
        shipped = ", ".join(str(p) for p in sorted(Path("recipes").rglob("*.yaml")))
        raise RecipeError(
            given=f"recipe {path} does not exist",
            expected="a YAML file" + (f"; shipped: {shipped}" if shipped else ""),
            fix="check the path (paths are relative to the directory you run from)",
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(given=f"{path} is not valid YAML: {error}", fix="correct the line named above") from error
    if not isinstance(raw, dict):
        raise RecipeError(given=f"{path} holds {type(raw).__name__}", expected="a mapping of keys to values")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one ``dotted.key=value`` (value read as YAML) to ``raw`` in place.

    Setting one unit of ``budget`` replaces the unit the recipe had: a budget has exactly one.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            given=f"override {override!r}", expected="key=value, such as budget.hours=0.1", fix="add the '='"
        )
    *parents, leaf = key.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise RecipeError(given=f"override {override!r}: {parent} is not a section", expected="a section of keys")
    if parents[-1:] == ["budget"] and leaf in BUDGET_UNITS:
        for unit in BUDGET_UNITS:
            section.pop(unit, None)
    section[leaf] = _yaml_value(text)


BUDGET_UNITS = ("hours", "gpu_hours", "flops", "tokens")


def _yaml_value(text: str) -> Any:
    """YAML 1.1 reads ``1e9`` as a string; people who type it mean a number."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validate(schema: type[Recipe], raw: Any, where: str) -> Recipe:
    """Validate ``raw`` against ``schema``; all problems are reported at once, each with its dotted key."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = [_describe(schema, problem) for problem in error.errors()]
        raise RecipeError(given=f"{where}: " + "\n  ".join(problems), fix="correct the keys named above") from None


def _describe(schema: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "the recipe"
    if problem["type"] == "extra_forbidden":
        section = _section(schema, location[:-1])
        hint = nearest(location[-1], section.model_fields) if section else ""
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _section(schema: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """The model class that validates the section at ``location`` (looks through lists, dicts, optionals)."""
    for name in location:
        if name in schema.model_fields:
            found = _model_in(schema.model_fields[name].annotation)
            if found is None:
                return None
            schema = found
    return schema


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
