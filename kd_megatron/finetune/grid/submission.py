"""A zip in the format of GLUE's server (gluebenchmark.com): one file of predictions per test set, checked.

Each file has the header ``index\\tprediction`` and one line per test row, in GLUE's order. The predictions of a task
are those of one model: of the best setting, the seed with the best selection score.

Shapes: N test rows, C classes.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_megatron.console import logs
from kd_megatron.errors import DataError, RecipeError, disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.finetune.grid.outputs import predictions_path, read_predictions
from kd_megatron.finetune.grid.summary import best_cells
from kd_megatron.finetune.places import Cell, cell_path
from kd_megatron.finetune.tasks.glue import AX, GLUE, find_tests, read_test
from kd_megatron.recipe import FinetuneRecipe, paths

HEADER = "index\tprediction"
_OTHER_NAMES = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", AX: "AX.tsv"}
FILES = {  # name in the zip -> task and test split
    _OTHER_NAMES.get(split, f"{name}.tsv"): (name, split) for name, task in GLUE.items() for split in task.num_test
}
LOWEST, HIGHEST = 0.0, 5.0  # of STS-B's similarity
_TIME = (1980, 1, 1, 0, 0, 0)  # of the files in the zip: equal predictions give equal bytes


def check_recipe(recipe: FinetuneRecipe) -> None:
    """Raise `RecipeError` or `DataError` before anything is trained when no submission could be made of it."""
    own = [task.name for task in recipe.tasks if not task.is_glue]
    if own:
        raise RecipeError(
            given=f"a submission with own data: {', '.join(own)}", expected="tasks of GLUE", fix="leave them out"
        )
    if not recipe.save_predictions:
        raise RecipeError(given="a submission with save_predictions: false", fix="set save_predictions: true")
    if recipe.glue_path is None:
        return
    directory = Path(paths.expand(recipe.glue_path))
    for name in (task.name for task in recipe.tasks if task.name in GLUE):  # other names are refused with their data
        found = find_tests(name, directory)
        _require_splits(name, set(found), str(directory / name))
        for split, path in found.items():
            _require_size(name, split, len(read_test(path, GLUE[name])))


def write_submission(summary: Mapping[str, Any], output: Path, recipe: FinetuneRecipe, path: Path) -> list[str]:
    """Write the zip, all or nothing, and check it.

    Args:
        output: the directory it lies in, with the cells' outputs.

    Returns:
        The names of the files that the server also wants and this recipe has no task for.

    Raises:
        DataError: a task without test rows, or with another number of them than GLUE's.
        OutputError: outputs of a cell are absent or damaged, or the disk is full.
        RecipeError: a task is not GLUE's.
    """
    check_recipe(recipe)
    files: dict[str, str] = {}
    for name, task in summary["tasks"].items():
        cell = max(best_cells(task), key=lambda cell: cell.get("selection_score", cell["score"]))
        chosen = Cell(name, cell["learning_rate"], cell["batch_size"], cell["seed"])
        predictions = read_predictions(predictions_path(cell_path(output, chosen, cell["key"])))
        _require_splits(name, set(predictions), f"the outputs of {chosen}")
        for file, (owner, split) in FILES.items():
            if owner == name and split in predictions:
                files[file] = _content(name, split, predictions[split])
        logs.say(f"submission: {chosen}, the best of {len(best_cells(task))} seeds by selection score")
    _write_zip(path, files)
    return [file for file in FILES if file not in files]


def _write_zip(path: Path, files: Mapping[str, str]) -> None:
    """All or nothing, and checked before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_is_clear(path), atomic.new_file(path) as aside:
        with zipfile.ZipFile(aside, "w") as archive:
            for file, content in files.items():
                archive.writestr(zipfile.ZipInfo(file, _TIME), content, zipfile.ZIP_DEFLATED)
        check_submission(aside)


def _require_splits(task: str, found: set[str], where: str) -> None:
    absent = [split for split in GLUE[task].num_test if split not in found and split != AX]
    if absent:
        raise DataError(
            given=f"task {task} has no rows of {' and '.join(absent)}: none in {where}",
            expected=f"GLUE's own files {', '.join(f'{split}.tsv' for split in absent)} (they have no labels)",
            fix="add them beside train.tsv, or leave the task out of the submission's recipe",
        )


def _require_size(task: str, split: str, num_rows: int) -> None:
    expected = GLUE[task].num_test[split]
    if num_rows != expected:
        raise DataError(
            given=f"task {task}: {num_rows} rows of {split}", expected=f"GLUE's {expected}", fix="take GLUE's own file"
        )


def _content(task: str, split: str, outputs: np.ndarray) -> str:
    """The file for ``outputs``, [N, C] logits or [N] values."""
    names = GLUE[task].labels
    _require_size(task, split, len(outputs))
    if names:
        lines = [names[index] for index in outputs.argmax(1)]
    else:
        lines = [f"{value:.3f}" for value in np.clip(outputs.reshape(-1), LOWEST, HIGHEST)]
    return "\n".join([HEADER, *(f"{index}\t{line}" for index, line in enumerate(lines))]) + "\n"


def check_submission(path: Path) -> list[str]:
    """The names of the files in the zip. Raises `DataError` for the first thing that GLUE's server would not take."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unknown = [name for name in names if name not in FILES]
            if unknown or not names or len(set(names)) < len(names):
                raise _wrong(str(path), f"the files {', '.join(names) or '(none)'}", f"some of {', '.join(FILES)}")
            for name in names:
                _check_file(f"{path}, {name}", archive.read(name).decode("utf-8"), *FILES[name])
    except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        raise _wrong(str(path), str(error), "a zip of .tsv files") from error
    return names


def _check_file(place: str, content: str, task: str, split: str) -> None:
    header, *lines = content.removesuffix("\n").split("\n")
    size, labels = GLUE[task].num_test[split], GLUE[task].labels
    if header != HEADER:
        raise _wrong(f"{place}:1", repr(header), repr(HEADER))
    if len(lines) != size:
        raise _wrong(place, f"{len(lines)} predictions", f"{size}")
    for number, line in enumerate(lines):
        index, _, prediction = line.partition("\t")
        if index != str(number):
            raise _wrong(f"{place}:{number + 2}", f"the index {index!r}", str(number))
        if not (prediction in labels if labels else _is_similarity(prediction)):
            expected = ", ".join(labels) or f"a number from {LOWEST:g} to {HIGHEST:g}"
            raise _wrong(f"{place}:{number + 2}", f"the prediction {prediction!r}", expected)


def _is_similarity(text: str) -> bool:
    try:
        return LOWEST <= float(text) <= HIGHEST
    except ValueError:
        return False


def _wrong(place: str, given: str, expected: str) -> DataError:
    return DataError(given=f"{place} has {given}", expected=expected, fix="write the submission again")
