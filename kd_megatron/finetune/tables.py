"""Reading labelled texts from TSV and JSONL: every row that cannot be used is an error naming file and line.

Fields are split at tabs and nothing else (``csv.QUOTE_NONE``): a quote mark in GLUE is part of a sentence.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron import logs
from kd_megatron.errors import DataError, nearest


@dataclass(frozen=True)
class Row:
    """One labelled text or pair of texts, and where it was read."""

    place: str  # "path:line", for messages
    first: str
    second: str | None
    label: str


def read_rows(path: Path, text: Sequence[str], label: str) -> list[Row]:
    """The rows of a .tsv file with a header, or of a .jsonl file; ``text`` names one column, or two of a pair."""
    if path.suffix == ".jsonl":
        return read_jsonl(path, text, label)
    if path.suffix == ".tsv":
        return read_tsv(path, text, label)
    raise DataError(
        given=f"{path} is of the unknown kind {path.suffix or 'without a suffix'!r}",
        expected="a .tsv file with a header line, or a .jsonl file",
        fix="convert the file, or correct its name",
    )


def read_tsv(
    path: Path,
    text: Sequence[str],
    label: str,
    header: Sequence[str] | None = None,
    max_torn_rows: int = 0,
) -> list[Row]:
    """The rows of a tab-separated file.

    Args:
        path: the file.
        text: name of the text column, or of the two columns of a pair.
        label: name of the label column.
        header: the column names of a file that has no header line; None: its first line names them.
        max_torn_rows: so many rows with too few fields are left out with a warning, one more is an error.
    """
    lines = _lines(path)
    first_line = 1
    if header is None:
        header, lines, first_line = lines[0].split("\t"), lines[1:], 2
        _check_columns(f"{path}:1", header, (*text, label))
    text_indices, label_index = [header.index(name) for name in text], header.index(label)
    rows: list[Row] = []
    torn: list[int] = []
    for number, line in enumerate(lines, start=first_line):
        fields = line.split("\t")
        if len(fields) < len(header) and len(torn) < max_torn_rows:
            torn.append(number)
            continue
        if len(fields) != len(header):
            raise DataError(
                given=f"{path}:{number} has {len(fields)} tab-separated fields",
                expected=f"{len(header)}: {', '.join(header)}",
                fix="correct or remove the line (quotes do not protect a tab or a line end)",
            )
        rows.append(_row(f"{path}:{number}", [fields[i] for i in text_indices], fields[label_index]))
    if torn:
        logs.warn(f"{path}: {len(torn)} torn rows were left out, lines {torn}")
    return _some(path, rows)


def read_jsonl(path: Path, text: Sequence[str], label: str) -> list[Row]:
    """The rows of a file with one JSON object per line."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(given=f"{place} is not valid JSON: {error}", expected="one object per line") from error
        if not isinstance(fields, dict):
            raise DataError(given=f"{place} holds {type(fields).__name__}", expected="a JSON object")
        rows.append(row_from_fields(place, fields, text, label))
    return _some(path, rows)


def row_from_fields(place: str, fields: dict[str, Any], text: Sequence[str], label: str) -> Row:
    """One row from a mapping of column names to values; the label may be a string, a number or a boolean."""
    _check_columns(place, list(fields), (*text, label))
    texts = [fields[name] for name in text]
    if not all(isinstance(value, str) for value in texts):
        raise DataError(given=f"{place}: {' and '.join(text)} hold {texts!r}", expected="strings")
    if not isinstance(fields[label], str | int | float):
        raise DataError(given=f"{place}: {label} holds {fields[label]!r}", expected="a string or a number")
    return _row(place, texts, str(fields[label]))


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file (a byte-order mark is dropped), numbered as an editor numbers them."""
    if not path.is_file():
        raise DataError(given=f"{path} does not exist", expected="a file", fix="correct the path")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            given=f"{path}:{number} is not UTF-8: {error.reason}", expected="UTF-8 text", fix="convert the file"
        ) from error
    if not text.strip():
        raise DataError(given=f"{path} is empty", expected="labelled rows")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _check_columns(place: str, header: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in header:
            raise DataError(
                given=f"{place} has no column {name!r}; its columns are: {', '.join(header)}",
                expected=f"columns {', '.join(wanted)}",
                fix=f"name the right column in the recipe (task.text, task.label), or correct the file; "
                f"{nearest(name, header)}",
            )


def _row(place: str, texts: list[str], label: str) -> Row:
    if not any(text.strip() for text in texts) or not label.strip():
        raise DataError(given=f"{place} has an empty text or label", expected="both", fix="correct or remove the line")
    return Row(place, texts[0], texts[1] if len(texts) == 2 else None, label.strip())


def _some(path: Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise DataError(given=f"{path} has no rows", expected="labelled rows below the header")
    return rows
