"""A table as data: columns that know how to write a value, and rows."""

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units


@dataclass(frozen=True)
class Column:
    """One column: the key of its values in the rows, its heading, and how a value is shown."""

    key: str
    heading: str
    show: Callable[[Any], str] = units.plain
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of raw values under columns. ``name`` is the csv's."""

    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    note: str = ""
    strong: frozenset[tuple[int, str]] = frozenset()  # (row, column's key) of cells in bold: winners beyond doubt

    def shown(self, escape: Callable[[str], str] = str, bold: Callable[[str], str] = str) -> list[list[str]]:
        """The cells as text, each as ``escape`` writes it, strong ones then as ``bold`` does."""
        return [
            [
                bold(cell) if (number, column.key) in self.strong else cell
                for column in self.columns
                for cell in [escape(column.show(row.get(column.key)))]
            ]
            for number, row in enumerate(self.rows)
        ]

    def plain_rows(self) -> list[dict[str, Any]]:
        """The rows for JSON: estimates as mappings, and None for numbers that are not finite."""
        return [{key: _plain(value) for key, value in row.items()} for row in self.rows]

    def write_csv(self, directory: Path) -> None:
        """Write raw values; an estimate takes four columns: the mean, ``_low``, ``_high`` and ``_n``."""
        flat = [_flat(row) for row in self.rows]
        names = list(dict.fromkeys(key for row in flat for key in row))
        with (directory / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(flat)


def texts(*names: str, **headings: str) -> list[Column]:
    """Columns of text: those headed by their key, then key -> heading."""
    return [Column(key, heading, is_text=True) for key, heading in ({name: name for name in names} | headings).items()]


def numbers(show: Callable[[Any], str] = units.plain, /, **headings: str) -> list[Column]:
    """Columns of numbers that are shown alike: key -> heading."""
    return [Column(key, heading, show) for key, heading in headings.items()]


def named(one: object, *names: str) -> dict[str, Any]:
    """The named ones of a value's attributes, as a part of a row."""
    return {name: getattr(one, name) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return asdict(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Estimate):
            flat |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high, f"{key}_n": value.n}
        else:
            flat[key] = value
    return flat
