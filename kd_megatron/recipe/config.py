"""Reading a recipe: YAML file + dotted overrides -> a validated, frozen object.

`load` is the only way in. Unknown keys name the nearest known one; every error names the file and the key.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kd_megatron.errors import RecipeError, nearest
from kd_megatron.recipe import recipe_yaml

_MOST_BYTES = 10_000_000  # of a recipe's file
_MOST_PARTS = 20  # of a dotted key


class Strict(BaseModel):
    """Base of all recipe sections: unknown keys are errors, numbers are finite, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """What is wrong with values that are each allowed: the first one is the error."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_problem(self) -> Self:
        for problem in self.problems():
            raise ValueError(problem)
        return self


def given_or_trained(section: Any, given: str) -> Iterator[str]:
    """What is wrong where not exactly one of ``given`` and ``train`` is there, or ``revision`` is of neither."""
    if (getattr(section, given) is None) == (section.train is None):
        yield f"give exactly one of {given!r} and 'train'"
    if section.train is not None and section.revision is not None:
        yield f"'revision' belongs to {given!r}"


Recipe = TypeVar("Recipe", bound=BaseModel)


def load(path: Path | str, schema: type[Recipe], overrides: list[str] | None = None) -> Recipe:
    """Read the recipe at ``path``, apply ``overrides`` (``"budget.hours=0.1"``), validate against ``schema``."""
    return validate(schema, read_overridden(path, overrides or []), where=str(path))


def read_overridden(path: Path | str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in a YAML file with ``overrides`` applied, of any schema. Raises `RecipeError` as its parts do."""
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    return raw


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
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        raw = recipe_yaml.read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, and so is a number of 5,000 digits
        raise RecipeError(given=f"{path} is not valid YAML: {error}", fix="correct the line named above") from error
    if not isinstance(raw, dict):
        raise RecipeError(given=f"{path} holds {type(raw).__name__}", expected="a mapping of keys to values")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one ``dotted.key=value`` (value read as YAML) to ``raw`` in place.

    Setting one unit of ``budget`` replaces the unit the recipe had: a budget has exactly one. A calibration goes with
    it where the new unit is counted, not measured.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            given=f"override {override!r}", expected="key=value, such as budget.hours=0.1", fix="add the '='"
        )
    *parents, leaf = key.split(".")
    if len(parents) >= _MOST_PARTS:
        raise RecipeError(
            given=f"override {override[:60]!r}... with {len(parents) + 1} parts", expected="a recipe's key"
        )
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise RecipeError(given=f"override {override!r}: {parent} is not a section", expected="a section of keys")
    if parents[-1:] == ["budget"] and leaf in BUDGET_UNITS:
        for unit in BUDGET_UNITS:
            section.pop(unit, None)
        if leaf not in TIME_UNITS:
            section.pop("calibrate", None)
    try:
        section[leaf] = recipe_yaml.read(text)
    except ValueError as error:
        raise RecipeError(
            given=f"override {override!r}: {error}", fix="correct the value, or put it in quotes"
        ) from error


TIME_UNITS = ("hours", "gpu_hours")
BUDGET_UNITS = (*TIME_UNITS, "flops", "tokens")


def validate(schema: type[Recipe], raw: Any, where: str) -> Recipe:
    """Validate ``raw`` against ``schema``; all problems are reported at once, each with its dotted key.

    A value that would be read as another one (``"yes"`` as true, ``true`` as 1, ``"5"`` as 5) is a problem too: what a
    recipe says and what runs are the same.
    """
    try:
        recipe = schema.model_validate(raw)
        problems = list(_altered(raw, recipe, ""))
    except ValidationError as error:
        problems = [_describe(schema, problem) for problem in error.errors()]
    if problems:
        raise RecipeError(given=f"{where}: " + "\n  ".join(problems), fix="correct the keys named above")
    return recipe


def _altered(given: Any, read: Any, key: str) -> Iterator[str]:
    """What validation made another value of, each with its dotted key."""
    if isinstance(read, BaseModel):
        read = {name: getattr(read, name) for name in type(read).model_fields}
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            yield from _altered(value, read.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple) and len(given) == len(read):
        for place, (value, its) in enumerate(zip(given, read, strict=True)):
            yield from _altered(value, its, f"{key}.{place}")
    elif given != read or _kind(given) is not _kind(read):
        yield f"{key}: {_shown(given)} would be read as {_shown(read)}; write what is meant, texts alone in quotes"


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _shown(value: Any) -> str:
    """``repr``, shortened: a message is not the place for a megabyte, nor for what cannot be encoded."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else _safe_repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"


def _describe(schema: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "the recipe"
    if problem["type"] == "extra_forbidden":
        section = _section(schema, location[:-1])
        hint = nearest(location[-1], section.model_fields) if section else ""
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    given = "" if isinstance(problem["input"], dict) else f" (given: {_shown(problem['input'])})"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _section(schema: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """The model class that validates the section at ``location``."""
    for name in location:
        if name in schema.model_fields:
            found = section_in(schema.model_fields[name].annotation)
            if found is None:
                return None
            schema = found
    return schema


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The model class in a field's annotation, if any (looks through lists, dicts, optionals)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)
