"""Where a task's rows come from: own files or data sets. GLUE's are in `glue_rows`, the embedded ones in `embedded`."""

from dataclasses import dataclass, field
from pathlib import Path

from kd_megatron.errors import RecipeError
from kd_megatron.files import hub
from kd_megatron.finetune.tasks.records import read_dataset, read_file
from kd_megatron.finetune.tasks.tables import Columns, Example
from kd_megatron.recipe import TaskRecipe
from kd_megatron.recipe.paths import expand


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
