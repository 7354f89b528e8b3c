"""A task of the recipe -> labelled texts, checked: GLUE by name, the embedded tasks, or own files."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd_megatron.errors import DataError, RecipeError, nearest
from kd_megatron.finetune import embedded, glue, metrics
from kd_megatron.finetune.metrics import Metric
from kd_megatron.finetune.tables import Row, read_rows
from kd_megatron.schema import TaskRecipe

SUBSET_SEED = 2404  # of max_train_examples: every arm and every seed of a study trains on the same subset


@dataclass(frozen=True)
class Split:
    """N texts or pairs, with their labels unless they are a test split."""

    first: list[str]
    second: list[str] | None
    labels: list[float]  # class indices, or values of a regression; empty for a test split

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Task:
    """What a model is fine-tuned and scored on."""

    name: str
    label_names: tuple[str, ...]  # empty for regression
    metric: Metric
    train: Split
    devs: dict[str, Split]  # the first one decides the score
    partial_split: bool  # a GLUE task on other rows than GLUE's
    note: str  # what a reader of the score must know; empty when there is nothing
    tests: dict[str, Split] = field(default_factory=dict)  # texts without labels, only predicted
    selection: Split | None = None  # rows taken away from train to choose the best cell by; None: the dev rows do

    @property
    def regression(self) -> bool:
        """Whether labels are values, learned by mean squared error, rather than classes."""
        return not self.label_names

    @property
    def num_dev(self) -> int:
        """Size of the dev split that decides the score."""
        return len(next(iter(self.devs.values())))

    def content_hash(self) -> str:
        """A short hash of all that scores and predictions depend on: every text and label, their order, the metric."""
        digest = hashlib.sha256(json.dumps([self.name, self.label_names, self.metric.title]).encode())
        selection = {"selection": self.selection} if self.selection else {}
        for split_name, split in (("train", self.train), *self.devs.items(), *self.tests.items(), *selection.items()):
            digest.update(json.dumps([split_name, split.first, split.second, split.labels]).encode())
        return digest.hexdigest()[:16]


def load_task(recipe: TaskRecipe, glue_path: str | None, glue_revision: str | None = None) -> Task:
    """Read and check the task; `DataError` names the file and line of the first row that cannot be used."""
    train, devs = _read(recipe, glue_path, glue_revision)
    is_glue = recipe.train is None
    regression = not glue.GLUE[recipe.name].labels if is_glue else recipe.type == "regression"
    label_names = () if regression else _label_names(recipe, train)
    encoded_train = _encode(train, label_names)
    encoded_devs = {name: _encode(rows, label_names) for name, rows in devs.items()}
    default_metric = glue.GLUE[recipe.name].metric if is_glue else "pearson_spearman" if regression else "accuracy"
    metric = metrics.choose(recipe.metric or default_metric, recipe.name, len(label_names) or None)

    subset_train = _subset(encoded_train, recipe.max_train_examples, recipe.name)
    subset_devs = {name: _subset(split, recipe.max_dev_examples, recipe.name) for name, split in encoded_devs.items()}
    _check_classes(recipe.name, train, subset_train, label_names)
    notes = [_subset_note("train", encoded_train, subset_train)]
    notes += [_subset_note(name, split, subset_devs[name]) for name, split in encoded_devs.items()]
    difference = ""
    if is_glue:
        sizes = {name: len(split) for name, split in encoded_devs.items()}
        difference = glue.difference_to_official(recipe.name, len(encoded_train), sizes)
    note = "; ".join(part for part in (difference, *notes) if part)
    partial = is_glue and bool(note)
    return Task(recipe.name, label_names, metric, subset_train, subset_devs, partial, note)


def _read(
    recipe: TaskRecipe, glue_path: str | None, glue_revision: str | None
) -> tuple[list[Row], dict[str, list[Row]]]:
    if recipe.train == "embedded":
        return embedded.read(recipe.name)
    if recipe.train is not None:
        return _read_own_files(recipe, recipe.train)
    if recipe.name not in glue.GLUE:
        spelling = {name.lower().replace("-", ""): name for name in glue.GLUE}
        meant = spelling.get(re.sub("[-_ ]", "", recipe.name.lower()))
        hint = f"did you mean {meant!r}?" if meant else nearest(recipe.name, [*glue.GLUE, *embedded.TASKS])
        raise RecipeError(
            given=f"task {recipe.name!r} is none of GLUE's and names no files; {hint}",
            expected="a GLUE task, or 'train' and 'dev' files, or train: embedded",
        )
    return glue.read_local(recipe.name, Path(glue_path)) if glue_path else glue.read_hub(recipe.name, glue_revision)


def _read_own_files(recipe: TaskRecipe, train: str) -> tuple[list[Row], dict[str, list[Row]]]:
    if recipe.dev is None:
        raise RecipeError(
            given=f"task {recipe.name} has 'train' but no 'dev'",
            expected="two files, with different rows",
            fix="hold some rows out of the training file and name them as 'dev'",
        )
    columns = [recipe.text] if isinstance(recipe.text, str) else recipe.text
    if len(columns) not in (1, 2):
        raise RecipeError(given=f"task {recipe.name}: text names {len(columns)} columns", expected="one, or two")
    return (
        read_rows(Path(train), columns, recipe.label),
        {"dev": read_rows(Path(recipe.dev), columns, recipe.label)},
    )


def _label_names(recipe: TaskRecipe, train: list[Row]) -> tuple[str, ...]:
    if recipe.train is None:
        return glue.GLUE[recipe.name].labels
    return tuple(sorted({row.label for row in train}))


def _encode(rows: list[Row], label_names: tuple[str, ...]) -> Split:
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
    second = [row.second for row in rows if row.second is not None]
    return Split([row.first for row in rows], second or None, labels)


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


def _check_classes(name: str, rows: list[Row], train: Split, label_names: tuple[str, ...]) -> None:
    if len(set(train.labels)) < 2:
        source = rows[0].place.rpartition(":")[0]
        only = label_names[int(train.labels[0])] if label_names else train.labels[0]
        raise DataError(
            given=f"{source}: all {len(train)} training examples of {name} have the label {only!r}",
            expected="at least two different labels",
            fix="check the label column, or raise max_train_examples",
        )


def _subset(split: Split, limit: int | None, name: str) -> Split:
    """A random subset that depends on the limit and the task alone; smaller limits give subsets of larger ones."""
    if limit is None or limit >= len(split):
        return split
    name_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    kept = sorted(np.random.default_rng([SUBSET_SEED, name_seed]).permutation(len(split))[:limit].tolist())
    second = split.second and [split.second[i] for i in kept]
    return Split([split.first[i] for i in kept], second, [split.labels[i] for i in kept])


def _subset_note(name: str, whole: Split, used: Split) -> str:
    return "" if len(used) == len(whole) else f"{name}: fixed random subset of {len(used)} of {len(whole)}"
