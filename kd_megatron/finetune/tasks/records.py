"""Reading labelled texts from rows of named fields: JSONL, Parquet, data sets of the hub; and so a task's own rows.

Fields have types there: a text must be a string; a label may be a string, a number or a boolean, and is told as text.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_megatron.errors import DataError, RecipeError
from kd_megatron.files import hub
from kd_megatron.finetune.tasks.tables import (
    Columns,
    Example,
    check_columns,
    make_row,
    read_csv,
    read_text,
    read_tsv,
    require_file,
    some,
)
from kd_megatron.recipe import TaskRecipe, paths
from kd_megatron.recipe.paths import expand

PARQUET_BATCH = 10_000  # rows that become Python objects at a time


def read_file(path: Path, columns: Columns) -> list[Example]:
    """The rows of a file of any kind we read, told by its suffix."""
    readers = {".tsv": read_tsv, ".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
    if path.suffix in readers:
        return readers[path.suffix](path, columns)
    raise DataError(
        given=f"{path} is of the unknown kind {path.suffix or 'without a suffix'!r}",
        expected=f"a file that ends in {', '.join(readers)}",
        fix="convert the file, or correct its name (of a data set of the hub: 'dataset' names it, 'train' its split)",
    )


def read_jsonl(path: Path, columns: Columns) -> list[Example]:
    """The rows of a file with one JSON object per line."""
    rows = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, and 100,000 brackets
            raise DataError(given=f"{place} is not valid JSON: {error}", expected="one object per line") from error
        if not isinstance(fields, dict):
            raise DataError(given=f"{place} holds {type(fields).__name__}", expected="a JSON object")
        rows.append(row_from_fields(place, fields, columns))
    return some(path, rows)


def read_parquet(path: Path, columns: Columns) -> list[Example]:
    """The rows of a Parquet file, numbered from 1."""
    import pyarrow
    from pyarrow import parquet

    require_file(path)
    rows: list[Example] = []
    try:
        file = parquet.ParquetFile(path)
        check_columns(str(path), file.schema_arrow.names, columns.names)
        for batch in file.iter_batches(PARQUET_BATCH, columns=columns.names):
            for fields in batch.to_pylist():
                rows.append(row_from_fields(f"{path}:row {len(rows) + 1}", fields, columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            given=f"{path} is not a whole Parquet file: {error}",
            expected="a Parquet file",
            fix="write or copy it again",
        ) from error
    return some(path, rows)


def read_dataset(name: str, subset: str | None, revision: str | None, split: str, columns: Columns) -> list[Example]:
    """The rows of one split of a data set; no code of it is ever run.

    Args:
        name: an id of the hub, or a local directory in a layout that the `datasets` library reads.
        subset: what the hub calls the configuration.
        revision: a commit, tag or branch of the hub's data set.
        split: its name, or a part such as ``train[:90%]``.

    Raises:
        DataError: it cannot be reached, has no such split or column, or a row cannot be used.
    """
    found = load_dataset(name, subset, revision, split)
    place = f"data set {name}" + (f" ({subset})" if subset else "") + f", {split}"
    check_columns(place, found.column_names, columns.names)
    class_names = getattr(found.features[columns.label], "names", None) if columns.label is not None else None
    rows = enumerate(found.select_columns(columns.names), start=1)
    return some(place, [row_from_fields(f"{place}:row {number}", row, columns, class_names) for number, row in rows])


def load_dataset(name: str, subset: str | None, revision: str | None, split: str | None) -> Any:
    """A split, or all of them (None), as the `datasets` library has them; `DataError` when they cannot be had."""
    import datasets

    try:
        found = datasets.load_dataset(paths.expand(name), subset, revision=revision, split=split)
    except Exception as error:  # the library raises dozens of classes, from its own, requests', httpx' and pyarrow's
        local = hub.is_local(name)
        raise DataError(
            given=f"{name}{f' ({subset})' if subset else ''} could not be loaded"
            f"{'' if local else ' from the hub'}: {error}",
            expected="a data set of files (no loading script)"
            + ("" if local else ", and a connection to huggingface.co or its cached copy"),
            fix="check its name, subset and splits"
            + ("" if local else "; connect, or download it and name its files or directory"),
        ) from error
    _check_commit(name, revision, found if split else next(iter(found.values())))
    return found


def _check_commit(name: str, revision: str | None, found: Any) -> None:
    """Without a connection the library takes the newest cached copy, whichever revision was asked for."""
    files = found.cache_files
    commit = Path(files[0]["filename"]).parent.name if files else None  # of the hub's data sets
    if hub.is_commit(revision) and hub.is_commit(commit) and commit != revision:
        raise DataError(
            given=f"huggingface.co is out of reach, and the cached copy of {name} is of commit {commit}",
            expected=f"commit {revision}",
            fix="connect once, or give the cached commit as the revision",
        )


def row_from_fields(
    place: str, fields: Mapping[str, Any], columns: Columns, class_names: list[str] | None = None
) -> Example:
    """One row from a mapping of column names to values.

    Args:
        class_names: of the integers in the label column, where the file says them.
    """
    check_columns(place, list(fields), columns.names)
    texts = [fields[name] for name in columns.text]
    if not all(isinstance(value, str) for value in texts):
        raise DataError(given=f"{place}: {' and '.join(columns.text)} hold {texts!r}", expected="strings")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            given=f"{place} is not a text: {error.reason}", expected="whole characters", fix="write the file again"
        ) from error
    if columns.label is None:
        return make_row(place, texts, None)
    label = fields[columns.label]
    no_number = isinstance(label, float) and not math.isfinite(label)
    if no_number or not isinstance(label, str | int | float):
        raise DataError(
            given=f"{place}: {columns.label} holds {label!r}",
            expected="a string or a number",
            fix="correct or remove the row",
        )
    if class_names is not None and isinstance(label, int):
        if not 0 <= label < len(class_names):
            raise DataError(
                given=f"{place} has the unknown label index {label}", expected=f"0 to {len(class_names) - 1}"
            )
        label = class_names[label]
    return make_row(place, texts, str(label))


@dataclass(frozen=True)
class Rows:
    """What was read of a task."""

    train: list[Example]
    devs: dict[str, list[Example]]  # the first one decides the score
    tests: dict[str, list[Example]] = field(default_factory=dict)  # without labels


def read_own(recipe: TaskRecipe, with_tests: bool) -> Rows:
    """The rows of a task that names its own files, or a data set of the hub; the test split if it names one."""
    columns = [recipe.text] if isinstance(recipe.text, str) else recipe.text
    if len(columns) not in (1, 2):
        raise RecipeError(given=f"task {recipe.name}: text names {len(columns)} columns", expected="one, or two")
    labelled, unlabelled = Columns(columns, recipe.label), Columns(columns, None)
    if recipe.dataset is not None:
        hub.check_data_revision(recipe.dataset, recipe.revision, f"data set {recipe.dataset}")
    train, dev = _split_names(recipe)
    test = recipe.test if with_tests else None
    return Rows(
        _read(recipe, train, labelled),
        {"dev": _read(recipe, dev, labelled)},
        {"test": _read(recipe, test, unlabelled)} if test is not None else {},
    )


def _split_names(recipe: TaskRecipe) -> tuple[str, str]:
    if recipe.dataset is not None:
        return recipe.train or "train", recipe.dev or "validation"
    if recipe.train is None or recipe.dev is None:
        raise RecipeError(
            given=f"task {recipe.name} has 'train' but no 'dev'",
            expected="two files, with different rows",
            fix="hold some rows out of the training file and name them as 'dev'",
        )
    return recipe.train, recipe.dev


def _read(recipe: TaskRecipe, split: str, columns: Columns) -> list[Example]:
    if recipe.dataset is None:
        return read_file(Path(expand(split)), columns)
    return read_dataset(recipe.dataset, recipe.subset, recipe.revision, split, columns)
