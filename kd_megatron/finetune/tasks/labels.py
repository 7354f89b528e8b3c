"""From the labels of rows to what is learned: class indices, or the values of a regression."""

import math
from collections.abc import Sequence

from kd_megatron.console import logs
from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks.metrics import Metric
from kd_megatron.finetune.tasks.tables import Row


def encode(rows: Sequence[Row], label_names: tuple[str, ...]) -> list[float]:
    """Class indices, or values when there are no label names. `DataError` names the first label that is neither."""
    indices = {name: float(index) for index, name in enumerate(label_names)}
    labels = []
    for row in rows:
        if label_names and row.label not in indices:
            raise DataError(
                given=f"{row.place} has the unknown label {row.label!r}",
                expected=f"one of the labels of the task: {', '.join(label_names)}",
                fix="correct the row, or add examples of the label to the training file",
            )
        labels.append(indices[row.label] if label_names else _value(row))
    return labels


def _value(row: Row) -> float:
    try:
        value = float(row.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            given=f"{row.place} has the label {row.label!r}",
            expected="a finite number, since the task is a regression",
            fix="correct the row, or set the task's type to classification",
        )
    return value


def check_two(task: str, place: str, labels: Sequence[float], label_names: tuple[str, ...]) -> None:
    """Raise `DataError` unless the training examples have at least two different labels."""
    if len(set(labels)) < 2:
        only = label_names[int(labels[0])] if label_names else labels[0]
        raise DataError(
            given=f"{place}: all {len(labels)} training examples of {task} have the label {only!r}",
            expected="at least two different labels",
            fix="check the label column, or raise max_train_examples",
        )


def warn_of_one_label(task: str, split: str, labels: Sequence[float], metric: Metric) -> None:
    """Warn of a dev split with one label: no correlation is defined there, whatever the model predicts."""
    if len(set(labels)) < 2 and not metric.one_label_will_do:
        logs.warn(
            f"{task}: all {len(labels)} rows of {split} have the same label: "
            f"there the {metric.title} says nothing of a model"
        )


def warn_of_shared_rows(task: str, train: Sequence[Row], devs: dict[str, list[Row]]) -> None:
    """Warn of dev rows whose texts are in train too, with their number: a score on them is of memory."""
    known = {(row.first, row.second) for row in train}
    for split, rows in devs.items():
        num_shared = sum((row.first, row.second) in known for row in rows)
        if num_shared:
            logs.warn(f"{task}: {num_shared} of {len(rows)} rows of {split} have the text of a training row")
