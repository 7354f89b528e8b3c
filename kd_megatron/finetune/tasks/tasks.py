"""A task of the recipe -> labelled texts, checked: GLUE by name, the embedded tasks, own files, or a data set."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from kd_megatron.console import logs
from kd_megatron.errors import DataError, RecipeError, nearest
from kd_megatron.finetune.tasks import embedded, glue, metrics
from kd_megatron.finetune.tasks.metrics import Metric
from kd_megatron.finetune.tasks.records import Rows, read_own
from kd_megatron.finetune.tasks.tables import Example
from kd_megatron.recipe import TaskRecipe
from kd_megatron.recipe.paths import expand

SUBSET_SEED = 2404  # of max_train_examples: every arm and every seed of a study trains on the same subset


@dataclass(frozen=True)
class Split:
    """N texts or pairs, with their labels unless they are a test split."""

    first: list[str]
    second: list[str] | None
    labels: list[float]  # class indices, or values of a regression; empty for a test split

    def __len__(self) -> int:
        return len(self.first)

    def at(self, places: Sequence[int]) -> Self:
        """The examples at ``places``, in that order."""
        second = self.second and [self.second[i] for i in places]
        return type(self)([self.first[i] for i in places], second, [self.labels[i] for i in places])


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


def load_task(
    recipe: TaskRecipe, glue_path: str | None, glue_revision: str | None = None, with_tests: bool = True
) -> Task:
    """Read and check the task; `DataError` names the file and line of the first row that cannot be used.

    Args:
        glue_path: the directory of GLUE's files; None: GLUE comes from the hub.
        glue_revision: of the hub's GLUE; None: the one we know.
        with_tests: whether test splits are read too, as far as there are any.
    """
    rows = _read(recipe, glue_path, glue_revision, with_tests)
    regression = not glue.GLUE[recipe.name].labels if recipe.is_glue else recipe.type == "regression"
    label_names: tuple[str, ...] = ()
    if not regression:
        label_names = glue.GLUE[recipe.name].labels if recipe.is_glue else tuple(sorted({r.label for r in rows.train}))
    source = rows.train[0].place.rpartition(":")[0]
    train = _split(rows.train, _encode_labels(rows.train, label_names))
    _check_two(recipe.name, source, train.labels, label_names)
    devs = {name: _split(part, _encode_labels(part, label_names)) for name, part in rows.devs.items()}
    tests = {name: _split(part, []) for name, part in rows.tests.items()}
    _warn_of_shared_rows(recipe.name, rows.train, rows.devs)

    default_metric = "pearson_spearman" if regression else "accuracy"
    if recipe.is_glue:
        default_metric = glue.GLUE[recipe.name].metric
    metric = metrics.choose(recipe.metric or default_metric, recipe.name, len(label_names) or None)
    subset_train = _subset(train, recipe.max_train_examples, recipe.name)
    subset_devs = {name: _subset(split, recipe.max_dev_examples, recipe.name) for name, split in devs.items()}
    _check_two(recipe.name, source, subset_train.labels, label_names)
    for name, split in subset_devs.items():
        _warn_of_one_label(recipe.name, name, split.labels, metric)
    note = _note(recipe, {"train": train, **devs}, {"train": subset_train, **subset_devs})
    partial = recipe.name in glue.GLUE and bool(note)
    return Task(recipe.name, label_names, metric, subset_train, subset_devs, partial, note, tests)


def _note(recipe: TaskRecipe, whole: dict[str, Split], used: dict[str, Split]) -> str:
    """How the rows differ from those of the task's name; ``whole`` and ``used`` are train and dev splits by name."""
    notes = []
    if recipe.is_glue:
        sizes = {name: len(split) for name, split in whole.items()}
        notes.append(glue.difference_to_official(recipe.name, sizes.pop("train"), sizes))
    elif recipe.name in glue.GLUE:
        notes.append(f"own data under the name of GLUE's {recipe.name}")
    notes += [
        f"{name}: fixed random subset of {len(used[name])} of {len(split)}"
        for name, split in whole.items()
        if len(used[name]) < len(split)
    ]
    return "; ".join(part for part in notes if part)


def _read(recipe: TaskRecipe, glue_path: str | None, glue_revision: str | None, with_tests: bool) -> Rows:
    if recipe.is_embedded:
        return Rows(*embedded.read(recipe.name))
    if not recipe.is_glue:
        return read_own(recipe, with_tests)
    if recipe.name not in glue.GLUE:
        spelling = {name.lower().replace("-", ""): name for name in glue.GLUE}
        meant = spelling.get(re.sub("[-_ ]", "", recipe.name.lower()))
        hint = f"did you mean {meant!r}?" if meant else nearest(recipe.name, [*glue.GLUE, *embedded.TASKS])
        raise RecipeError(
            given=f"task {recipe.name!r} is none of GLUE's and names no data; {hint}",
            expected="a GLUE task, or 'train' and 'dev' files, or 'dataset', or train: embedded",
        )
    if glue_path:
        return glue.read_local(recipe.name, Path(expand(glue_path)), with_tests)
    return glue.read_hub(recipe.name, glue_revision, with_tests)


def _split(rows: list[Example], values: list[float]) -> Split:
    second = [row.second for row in rows if row.second is not None]
    return Split([row.first for row in rows], second or None, values)


def _subset(split: Split, limit: int | None, name: str) -> Split:
    """A random subset that depends on the limit and the task alone; smaller limits give subsets of larger ones."""
    if limit is None or limit >= len(split):
        return split
    name_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    kept = sorted(np.random.default_rng([SUBSET_SEED, name_seed]).permutation(len(split))[:limit].tolist())
    return split.at(kept)


def _encode_labels(rows: Sequence[Example], label_names: tuple[str, ...]) -> list[float]:
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
        labels.append(indices[row.label] if label_names else _finite(row))
    return labels


def _finite(row: Example) -> float:
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


def _check_two(task: str, place: str, labels: Sequence[float], label_names: tuple[str, ...]) -> None:
    """Raise `DataError` unless the training examples have at least two different labels."""
    if len(set(labels)) < 2:
        only = label_names[int(labels[0])] if label_names else labels[0]
        raise DataError(
            given=f"{place}: all {len(labels)} training examples of {task} have the label {only!r}",
            expected="at least two different labels",
            fix="check the label column, or raise max_train_examples",
        )


def _warn_of_one_label(task: str, split: str, labels: Sequence[float], metric: Metric) -> None:
    """Warn of a dev split with one label: no correlation is defined there, whatever the model predicts."""
    if len(set(labels)) < 2 and not metric.one_label_will_do:
        logs.warn(
            f"{task}: all {len(labels)} rows of {split} have the same label: "
            f"there the {metric.title} says nothing of a model"
        )


def _warn_of_shared_rows(task: str, train: Sequence[Example], devs: dict[str, list[Example]]) -> None:
    """Warn of dev rows whose texts are in train too, with their number: a score on them is of memory."""
    known = {(row.first, row.second) for row in train}
    for split, rows in devs.items():
        num_shared = sum((row.first, row.second) in known for row in rows)
        if num_shared:
            logs.warn(f"{task}: {num_shared} of {len(rows)} rows of {split} have the text of a training row")
