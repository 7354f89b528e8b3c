"""Reading labelled texts from TSV and CSV: every row that cannot be used is an error naming file and line.

A .tsv is split at tabs and nothing else (``csv.QUOTE_NONE``): a quote mark in GLUE is part of a sentence. A .csv is
split as RFC 4180 has it: quotes protect commas and line ends, and a quote inside quotes is doubled.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.errors import DataError, nearest


@dataclass(frozen=True)
class Example:
    """One text or pair of texts, its label, and where it was read."""

    place: str  # "path:line", for messages
    first: str
    second: str | None
    label: str  # empty in a test split


@dataclass(frozen=True)
class Columns:
    """Where a row's texts and label are."""

    text: Sequence[str]  # one column, or the two of a pair
    label: str | None  # None: a test split, whose labels are not looked at

    @property
    def names(self) -> list[str]:
        """All columns that a file must have."""
        return [*self.text, *([self.label] if self.label is not None else [])]


def read_tsv(
    path: Path, columns: Columns, header: Sequence[str] | None = None, max_torn_rows: int = 0
) -> list[Example]:
    """The rows of a tab-separated file.

    Args:
        header: the column names of a file that has no header line; None: its first line names them.
        max_torn_rows: so many rows with too few fields are left out with a warning, one more is an error.

    Raises:
        DataError: the file, or its first line that cannot be used.
    """
    hint = "correct or remove the line (quotes do not protect a tab or a line end)"
    lines = ((number, line.split("\t")) for number, line in enumerate(read_lines(path), start=1))
    return _rows(path, lines, columns, header, max_torn_rows, hint)


def read_csv(path: Path, columns: Columns) -> list[Example]:
    """The rows of a comma-separated file with a header line; see `read_tsv`."""
    return _rows(path, _csv_lines(path), columns, None, 0, "put a text with commas, quotes or line ends in quotes")


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number of its end, fields) of each record."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                given=f"{path}:{reader.line_num} is not valid CSV: {error}",
                expected="quotes around the whole field, closed, and those inside doubled",
                fix="correct the line, or one above it whose quote is not closed",
            ) from error
        if fields is None:
            return
        yield reader.line_num, fields


def _rows(
    path: Path,
    lines: Iterable[tuple[int, list[str]]],
    columns: Columns,
    header: Sequence[str] | None,
    max_torn_rows: int,
    hint: str,
) -> list[Example]:
    lines = iter(lines)
    if header is None:
        number, header = next(lines)
        check_columns(f"{path}:{number}", header, columns.names)
    else:
        first = next(lines)
        _refuse_header_line(f"{path}:{first[0]}", first[1], header)
        lines = itertools.chain([first], lines)
    text_indices = [header.index(name) for name in columns.text]
    label_index = header.index(columns.label) if columns.label is not None else None
    rows: list[Example] = []
    torn: list[int] = []
    for number, fields in lines:
        if len(fields) < len(header) and len(torn) < max_torn_rows:
            torn.append(number)
            continue
        if len(fields) != len(header):
            raise DataError(
                given=f"{path}:{number} has {len(fields)} field{'s' if len(fields) != 1 else ''}",
                expected=f"{len(header)}: {', '.join(header)}",
                fix=hint,
            )
        label = fields[label_index] if label_index is not None else None
        rows.append(make_row(f"{path}:{number}", [fields[i] for i in text_indices], label))
    if torn:
        logs.warn(f"{path}: {len(torn)} torn rows were left out, lines {torn}")
    return some(path, rows)


def _refuse_header_line(place: str, fields: list[str], header: Sequence[str]) -> None:
    """CoLA's files begin with an example; a copy that was saved anew often begins with names, which are no example."""
    if {field.strip().lower() for field in fields} & {"label", "sentence"}:
        raise DataError(
            given=f"{place} is a header line: {', '.join(fields)}",
            expected=f"a file without one, each line with {', '.join(header)}",
            fix="take GLUE's own file, or remove the line and put the columns in that order",
        )


def read_lines(path: Path) -> list[str]:
    """The lines of a file, numbered as an editor numbers them."""
    return [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]


def read_text(path: Path) -> str:
    """The content of a UTF-8 file (a byte-order mark is dropped), which is not empty."""
    require_file(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            given=f"{path}:{number} is not UTF-8: {error.reason}", expected="UTF-8 text", fix="convert the file"
        ) from error
    if not text.strip():
        raise DataError(given=f"{path} is empty", expected="rows")
    return text


def require_file(path: Path) -> None:
    """Raise `DataError` unless ``path`` is a file."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise DataError(given=f"{path} {what}", expected="a file", fix="correct the path")


def check_columns(place: str, header: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `DataError` unless every column of ``wanted`` is in ``header``, once."""
    for name in wanted:
        if header.count(name) == 1:
            continue
        what = f"{header.count(name)} columns {name!r}" if name in header else f"no column {name!r}"
        raise DataError(
            given=f"{place} has {what}; its columns are: {', '.join(header)}",
            expected=f"columns {', '.join(wanted)}",
            fix=f"name the right column in the recipe (task.text, task.label), or correct the file; "
            f"{nearest(name, header)}",
        )


def make_row(place: str, texts: list[str], label: str | None) -> Example:
    """A row with something to read. Raises `DataError` when its texts, or a label that was asked for, are empty."""
    if not "".join(texts).strip() or (label is not None and not label.strip()):
        what = "text" if label is None else "text or label"
        raise DataError(given=f"{place} has an empty {what}", expected="both", fix="correct or remove the line")
    return Example(place, texts[0], texts[1] if len(texts) == 2 else None, (label or "").strip())


def some(place: Path | str, rows: list[Example]) -> list[Example]:
    """``rows``. Raises `DataError` when there are none."""
    if not rows:
        raise DataError(given=f"{place} has no rows", expected="rows below the header")
    return rows
