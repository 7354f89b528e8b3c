"""Recipes compared key by key; each difference comes with what it means (`kd_megatron.recipe.policy`)."""

import functools
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kd_megatron.recipe import config
from kd_megatron.recipe.policy import COUNTS, Comparison, Policy

Recipe = TypeVar("Recipe", bound=BaseModel)
Schema = type[BaseModel]


@dataclass(frozen=True)
class KeyChange:
    """One key whose value is not the same in two recipes."""

    key: str  # dotted
    arm: str  # whose entry it is; "" outside sections that have one of each arm. Names of arms may have dots
    was: Any
    now: Any
    policy: Policy

    @property
    def only_adds(self) -> bool:
        """Whether all that was there is there still; of an arm's entry the caller knows which arms are new."""
        if self.policy.grows == "longer" and isinstance(self.was, list) and isinstance(self.now, list):
            return all(value in self.now for value in self.was)
        return self.policy.grows == "on" and self.now is True


def changes(
    schema: Schema, was: Any, now: Any, but: Comparison | None = None, among: Collection[str] | None = None
) -> list[KeyChange]:
    """The keys whose values differ, in the order of ``was``; a key that is not there is None.

    Args:
        schema: of both.
        was: a recipe, or one as plain data, which may have keys that the schema has not.
        now: the same.
        but: leaves out what does not count in this comparison.
        among: looks at these dotted keys alone.
    """
    before, after = _flat(schema, was), _flat(schema, now)
    found = (
        KeyChange(key, arm, before.get((key, arm)), after.get((key, arm)), policy_of(schema, key))
        for key, arm in dict.fromkeys([*before, *after])
        if (among is None or key in among) and before.get((key, arm)) != after.get((key, arm))
    )
    return [change for change in found if but is None or but not in change.policy.free]


def flatten(raw: Any) -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    return {key: value for (key, _), value in _leaves(None, raw, "", "")}


@dataclass(frozen=True)
class Difference:
    """One key of the resolved recipe that is not the same in all arms."""

    key: str
    values: dict[str, Any]  # arm -> value


def differences(resolved: Mapping[str, BaseModel]) -> list[Difference]:
    """Every key outside ``arms`` whose value is not the same in all resolved recipes of arms."""
    flat = {arm: flatten(recipe.model_dump(mode="json", exclude={"arms"})) for arm, recipe in resolved.items()}
    keys = sorted({key for values in flat.values() for key in values})
    found = (Difference(key, {arm: values.get(key) for arm, values in flat.items()}) for key in keys)
    return [difference for difference in found if not all_equal(difference.values.values())]


def all_equal(values: Collection[Any]) -> bool:
    """Whether all are the same."""
    return all(value == next(iter(values)) for value in values)


@functools.cache
def policy_of(schema: Schema, key: str) -> Policy:
    """The policy of a dotted key with those of its sections in it; `COUNTS` where ``schema`` has no such key."""
    found, section = COUNTS, schema
    for name in key.split("."):
        if name not in section.model_fields:
            break
        found = functools.reduce(operator.or_, own_policies(section, name), COUNTS).within(found)
        below = config.section_in(section.model_fields[name].annotation)
        if below is None:
            break
        section = below
    return found


def own_policies(section: Schema, name: str) -> list[Policy]:
    """What a field says itself; nothing where it leaves that to its section."""
    return [one for one in section.model_fields[name].metadata if isinstance(one, Policy)]


@functools.cache
def left_out(schema: Schema, comparison: Comparison) -> dict[str, Any]:
    """What does not count in ``comparison``, as ``model_dump(exclude=...)`` takes it."""
    return dict(_left_out(schema, comparison, ""))


def without(recipe: Recipe, comparison: Comparison) -> Recipe:
    """``recipe`` with the defaults of its own keys that do not count in ``comparison``."""
    fields, free = type(recipe).model_fields, left_out(type(recipe), comparison)
    return recipe.model_copy(update={name: fields[name].get_default() for name, whole in free.items() if whole is True})


def with_defaults(schema: Schema, recorded: Any) -> Any:
    """A recipe as an earlier version wrote it, with the keys that were added since at their defaults.

    One that has other keys than this version's stays as it is.
    """
    try:
        return schema.model_validate(recorded).model_dump(mode="json")
    except ValidationError:
        return recorded


def _left_out(schema: Schema, comparison: Comparison, prefix: str, section: Schema | None = None) -> Iterator[Any]:
    for name, field in (section or schema).model_fields.items():
        if comparison in policy_of(schema, f"{prefix}{name}").free:
            yield name, True
            continue
        below = config.section_in(field.annotation)
        if below and (inside := dict(_left_out(schema, comparison, f"{prefix}{name}.", below))):
            yield name, inside


def _flat(schema: Schema, recipe: Any) -> dict[tuple[str, str], Any]:
    return dict(_leaves(schema, recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else recipe, "", ""))


def _leaves(schema: Schema | None, raw: Any, key: str, arm: str) -> Iterator[tuple[tuple[str, str], Any]]:
    """((dotted key, arm), value) of all that is no mapping with something in it."""
    of_arms = bool(schema and key and not arm and policy_of(schema, key).grows == "by_arm")
    if isinstance(raw, dict) and (raw or of_arms):
        for name, part in raw.items():
            yield from _leaves(schema, part, f"{key}.{name}" if key else str(name), str(name) if of_arms else arm)
    else:
        yield (key, arm), raw
