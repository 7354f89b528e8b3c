"""Numbers in words, with their units, as console, pages and errors write them."""

from collections.abc import Collection
from typing import Any

from kd_megatron.recipe import BudgetRecipe

NOTHING = "\N{EN DASH}"
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """``"4.60B"``, ``"12.3M"``, ``"840"``."""
    if value is None:
        return NOTHING
    for size, suffix in _LARGE:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"


def flops(value: float | None) -> str:
    """``"1.25e15"``."""
    if not value:
        return NOTHING if value is None else "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def ratio(value: float | None) -> str:
    """``"0.57"``."""
    return NOTHING if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A fraction as ``"12.3 %"``."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def hours(value: float | None) -> str:
    """``"3.40"``; three significant digits below an hour."""
    return NOTHING if value is None else f"{value:.3g}"


def points(value: float | None) -> str:
    """A score in [0, 1] in points of 100: ``"71.2"``."""
    return NOTHING if value is None else signless(f"{100 * value:.1f}")


def number(value: float | None) -> str:
    """A setting as short as it goes: ``"5e-05"``, ``"0.001"``."""
    return NOTHING if value is None else f"{value:g}"


def thousandths(value: float | None) -> str:
    """A loss in nats, or a p: ``"2.134"``."""
    return NOTHING if value is None else f"{value:.3f}"


def signed(value: float, digits: int) -> str:
    """``"+1.2"`` or ``"−0.3"``; ``"0.0"`` when it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else signless(text)


def signless(text: str) -> str:
    """A minus sign in place of the hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def plain(value: Any) -> str:
    """Anything else."""
    return NOTHING if value is None else str(value)


def counted(num: int, what: str) -> str:
    """``"1 seed"`` or ``"3 seeds"``."""
    return f"{num} {what}{'' if num == 1 else 's'}"


def num_seeds(num: int) -> str:
    """`counted` of seeds."""
    return counted(num, "seed")


def seeds_of(counts: Collection[int]) -> str:
    """``"3 seeds"``, or ``"2 to 3 seeds"`` where counts differ."""
    few, most = min(counts, default=0), max(counts, default=0)
    return num_seeds(few) if few == most else f"{few} to {most} seeds"


def by_arm(values: dict[str, str]) -> str:
    """The value of all arms, or each with its arms: ``"0.0005"``, ``"0.0005 (scratch, minilm), 0.001 (tinybert)"``."""
    arms: dict[str, list[str]] = {}
    for arm, value in values.items():
        arms.setdefault(value, []).append(arm)
    if len(arms) == 1:
        return next(iter(arms))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in arms.items())


def unit_in_words(unit: str) -> str:
    """A budget's unit as it is written: ``"FLOPs"``, ``"gpu hours"``."""
    return unit.replace("flops", "FLOPs").replace("_", " ")


def budget_in_words(budget: BudgetRecipe) -> str:
    """``"2.00e13 FLOPs"``, ``"1.5 hours"``."""
    if budget.unit == "flops":
        return f"{flops(budget.limit)} FLOPs"
    if budget.unit == "tokens":
        return f"{count(budget.limit)} tokens"
    return f"{budget.limit:g} {budget.unit.replace('gpu_hours', 'GPU hours')}"
