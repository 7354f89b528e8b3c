"""YAML in recipes: what is written is what is read; traps are errors that name the line."""

import math
from typing import Any

import pytest
import yaml

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import config, recipe_yaml
from kd_megatron.recipe.config import Strict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None),
        ("10", 10), ("-3", -3), ("1_000", 1000), ("0x1f", 31), ("010", "010"), ("1:30", "1:30"), ("2024-01-01",
        "2024-01-01"),
        ("1e9", 1e9), ("5e-4", 5e-4), ("1.0e+9", 1e9), (".5", 0.5), ("-.inf", -math.inf), ("1.5.2", "1.5.2"), ("e9",
        "e9"),
        ("'5'", "5"), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}), ("{a: &x {k: 1}, b: {<<: *x, j: 2}}",
        {"a": {"k": 1}, "b": {"k": 1, "j": 2}}),
        ("{a: &x {k: 1}, b: {<<: *x, k: 2}}", {"a": {"k": 1}, "b": {"k": 2}}),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    read = recipe_yaml.read(text)
    assert (read, type(read)) == (value, type(value))


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice[\\s\\S]*line 3"),
        ("a: {b: 1, b: 1}", "'b' is given twice"),
        ("{1: 2}", "not a text"),
        ("{[a]: 2}", "not a text"),
        ("&a [*a]", "holds itself"),
        ("&a {b: *a}", "holds itself"),
        (LAUGHS, "more than 100,000 values"),
        ("[" * 60 + "]" * 60, "levels"),
        ("[" * 5000, "levels"),
        ('"\\0"', "control characters"),
        ('"\\ud800"', "half a character"),
        ("9" * 5000, "digits"),
        ("!!python/object/apply:os.system ['true']", "python"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_a_trap_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_yaml.read(text)


ODD = [
    "yes",
    "1e9",
    "010",
    "1:30",
    "null",
    "",
    " ",
    "a\nb",
    "2024-01-01",
    "0x1f",
    "<<",
    "=",
    "😀",
    "'",
    '"',
    "#",
    "- a",
    "5",
]
NUMBERS = [0, -1, 10**20, 1e9, 1e-7, 0.1, 1e300, 5e-324, 3.0]


@pytest.mark.parametrize("reader", [recipe_yaml.read, yaml.safe_load], ids=["ours", "YAML 1.1"])
def test_what_is_written_is_read_again_by_either_version(reader: Any) -> None:
    raw = {"texts": ODD, "numbers": NUMBERS, "rest": [True, False, None, {}, [], dict.fromkeys(ODD, 1)]}
    assert reader(recipe_yaml.dump(raw)) == raw


class Section(Strict):
    number: int = 0
    decimal: float = 0.0
    truth: bool = False
    text: str = ""
    pair: tuple[float, float] = (0.0, 0.0)


@pytest.mark.parametrize(
    "raw",
    [{"number": True}, {"number": "5"}, {"truth": "yes"}, {"truth": 1}, {"decimal": "1e9"}, {"text": b"x"},
    {"pair": [True, 0]}],
)  # fmt: skip
def test_a_value_that_would_be_read_as_another_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(raw))):
        config.validate(Section, raw, "x")


def test_equal_numbers_pass_and_infinite_ones_do_not() -> None:
    assert config.validate(Section, {"number": 3.0, "decimal": 3, "pair": [1, 2]}, "x").number == 3
    for value in (math.inf, math.nan):
        with pytest.raises(RecipeError, match="finite"):
            config.validate(Section, {"decimal": value}, "x")
