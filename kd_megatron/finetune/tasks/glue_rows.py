"""The rows of a GLUE task, from local files or the Hugging Face hub; both give the same.

The local layout is that of GLUE's own download: TASK/train.tsv, TASK/dev.tsv, TASK/test.tsv; the hub's is
``nyu-mll/glue``. The labels of test rows are the GLUE server's secret: where a copy has some, they are not looked at.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks.glue import AX, GLUE, HUB_DATASET, HUB_REVISION, GlueTask
from kd_megatron.finetune.tasks.records import load_dataset, row_from_fields
from kd_megatron.finetune.tasks.sources import Rows
from kd_megatron.finetune.tasks.tables import Columns, Example, read_lines, read_tsv

# GLUE's download script writes the first; other copies have the rest.
AX_FILES = ("diagnostic/diagnostic.tsv", "diagnostic/AX.tsv", "AX/AX.tsv", "AX/test.tsv", "AX.tsv")
INDEX_COLUMNS = ("index", "id")  # of test files: 0, 1, 2 and so on


def read_local(name: str, directory: Path, with_tests: bool) -> Rows:
    """The rows of the task ``name`` from ``directory``/``name``; test splits as far as their files are there."""
    task, folder = GLUE[name], directory / name
    if not folder.is_dir():
        present = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        raise DataError(
            given=f"{folder} does not exist; {directory} holds: {', '.join(present) or 'no task'}",
            expected=f"a directory {name} with train.tsv and dev.tsv",
            fix="correct glue_path, or leave the task out",
        )
    devs = {split: folder / f"{split}.tsv" for split in task.num_dev if (folder / f"{split}.tsv").exists()}
    first = next(iter(task.num_dev))
    if devs and first not in devs:
        raise DataError(
            given=f"{folder} has {', '.join(path.name for path in devs.values())} and no {first}.tsv",
            expected=f"{first}.tsv: the score of {name} is read from it",
            fix="add the file, or rename the other one to dev.tsv, which is then named as a substitute",
        )
    devs = devs or {"dev": folder / "dev.tsv"}  # MNLI without its two official dev sets
    for path in (folder / "train.tsv", *devs.values()):
        if not path.exists():
            raise DataError(
                given=f"{path} does not exist",
                expected=f"train.tsv and {' or '.join(f'{split}.tsv' for split in task.num_dev)} in {folder}",
                fix="add the file, or leave the task out",
            )

    def read(path: Path) -> list[Example]:
        return read_tsv(path, Columns(task.text, task.label), task.header, task.max_torn_rows)

    tests = find_tests(name, directory) if with_tests else {}
    return Rows(
        read(folder / "train.tsv"),
        {split: read(path) for split, path in devs.items()},
        {split: read_test(path, task) for split, path in tests.items()},
    )


def find_tests(name: str, directory: Path) -> dict[str, Path]:
    """Test split -> its file, of those of the task ``name`` that are there."""
    candidates = {split: [directory / name / f"{split}.tsv"] for split in GLUE[name].num_test}
    if AX in candidates:
        candidates[AX] = [directory / file for file in AX_FILES]
    found = {split: [path for path in paths if path.exists()] for split, paths in candidates.items()}
    return {split: paths[0] for split, paths in found.items() if paths}


def read_test(path: Path, task: GlueTask) -> list[Example]:
    """The rows of a test file.

    All of them have a header line, CoLA's too. Their order is what the GLUE server counts by: it is checked.
    """
    rows = read_tsv(path, Columns(task.text, None))
    header, *lines = read_lines(path)
    index_column = header.split("\t")[0]
    if index_column not in INDEX_COLUMNS:
        return rows
    indices = [line.split("\t", 1)[0] for line in lines]
    wrong = next((number for number, index in enumerate(indices) if index != str(number)), None)
    if wrong is not None:
        raise DataError(
            given=f"{path}:{wrong + 2} has the {index_column} {indices[wrong]!r}",
            expected=f"{wrong}: test rows in GLUE's order, all of them",
            fix="take GLUE's own file, or remove it: it is only predicted",
        )
    return rows


def read_hub(name: str, revision: str | None, with_tests: bool) -> Rows:
    """The rows of the task ``name`` from the Hugging Face hub, at ``revision`` or the one we know."""
    task = GLUE[name]
    revision = revision or HUB_REVISION
    splits = _load(task.hub_name, revision)
    tests = {split: splits[task.hub_split(split)] for split in task.num_test if split != AX} if with_tests else {}
    if with_tests and AX in task.num_test:
        tests[AX] = _load("ax", revision)["test"]
    return Rows(
        rows_from_hub(name, splits["train"], "train"),
        {dev: rows_from_hub(name, splits[task.hub_split(dev)], dev) for dev in task.num_dev},
        {test: rows_from_hub(name, examples, test) for test, examples in tests.items()},
    )


def _load(hub_name: str, revision: str) -> Any:
    try:
        return load_dataset(HUB_DATASET, hub_name, revision, None)
    except DataError as error:
        raise DataError(
            given=error.given,
            expected="a connection to huggingface.co, or its cached copy",
            fix="connect, or set glue_path to a directory with GLUE's files (TASK/train.tsv, TASK/dev.tsv)",
        ) from error


def rows_from_hub(name: str, examples: Iterable[dict[str, Any]], split: str) -> list[Example]:
    """Hub examples as the rows the local files would give: the class index becomes the local spelling."""
    task, rows = GLUE[name], []
    columns = Columns(task.hub_text or task.text, None if split in task.num_test else "label")
    for index, example in enumerate(examples):
        place = f"{HUB_DATASET}/{name}/{split}:{index}"
        if split in task.num_test and example["idx"] != index:
            raise DataError(given=f"{place} has the idx {example['idx']}", expected="test rows in GLUE's order")
        rows.append(row_from_fields(place, example, columns, list(task.labels) or None))
    return rows
