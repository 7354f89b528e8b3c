"""The nine GLUE tasks (Wang et al. 2019): their columns, labels, metrics and official sizes, and their rows.

A split whose row count is not the official one is partial or a substitute, and is named so. Rows are in local files, in
the layout of GLUE's own download (TASK/train.tsv, TASK/dev.tsv, TASK/test.tsv), or on the hub as ``nyu-mll/glue``; both
give the same. The labels of test rows are the GLUE server's secret: where a copy has some, they are not looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks.records import Rows, load_dataset, row_from_fields
from kd_megatron.finetune.tasks.tables import Columns, Example, read_lines, read_tsv

HUB_DATASET = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # whose row counts are the official ones below
AX = "AX"  # GLUE's diagnostic set: pairs for MNLI's classifier, a test split of MNLI here
COLA_COLUMNS = ("source", "label", "mark", "sentence")  # CoLA's files have no header line
# GLUE's download script writes the first; other copies have the rest.
AX_FILES = ("diagnostic/diagnostic.tsv", "diagnostic/AX.tsv", "AX/AX.tsv", "AX/test.tsv", "AX.tsv")
INDEX_COLUMNS = ("index", "id")  # of test files: 0, 1, 2 and so on


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE."""

    text: tuple[str, ...]  # columns of the local files
    num_train: tuple[int, ...]  # official sizes
    num_dev: dict[str, int]  # name of the dev split -> official size; the first one decides the score
    num_test: dict[str, int]  # name of the test split -> official size; their labels are the GLUE server's secret
    labels: tuple[str, ...] = ("0", "1")  # local spelling, in the hub's order; empty for regression
    metric: str = "accuracy"
    label: str = "label"
    header: tuple[str, ...] | None = None
    hub_text: tuple[str, ...] = ()  # where the hub names the columns differently
    max_torn_rows: int = 0
    hub_splits: dict[str, str] = field(default_factory=dict)  # where the hub names the splits differently

    def hub_split(self, split: str) -> str:
        """What the hub calls the split ``split``."""
        return self.hub_splits.get(split, "validation" if split == "dev" else split)


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "CoLA": GlueTask(("sentence",), (8551,), {"dev": 1043}, {"test": 1063}, metric="matthews", header=COLA_COLUMNS),
    "SST-2": GlueTask(("sentence",), (67349,), {"dev": 872}, {"test": 1821}),
    "MRPC": GlueTask(
        ("#1 String", "#2 String"),
        (3668,),
        {"dev": 408},
        {"test": 1725},
        metric="f1_accuracy",
        label="Quality",
        hub_text=PAIR,
    ),
    "STS-B": GlueTask(
        PAIR, (5749,), {"dev": 1500}, {"test": 1379}, labels=(), metric="pearson_spearman", label="score"
    ),
    "QQP": GlueTask(
        ("question1", "question2"),
        (363846, 363849),  # without and with the torn rows of GLUE's own file
        {"dev": 40430},
        {"test": 390965},
        metric="f1_accuracy",
        label="is_duplicate",
        max_torn_rows=5,
    ),
    "MNLI": GlueTask(
        PAIR,
        (392702,),
        {"dev_matched": 9815, "dev_mismatched": 9832},
        {"test_matched": 9796, "test_mismatched": 9847, AX: 1104},
        labels=("entailment", "neutral", "contradiction"),
        label="gold_label",
        hub_text=("premise", "hypothesis"),
        hub_splits={"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    ),
    "QNLI": GlueTask(("question", "sentence"), (104743,), {"dev": 5463}, {"test": 5463}, labels=ENTAILMENT),
    "RTE": GlueTask(PAIR, (2490,), {"dev": 277}, {"test": 3000}, labels=ENTAILMENT),
    "WNLI": GlueTask(PAIR, (635,), {"dev": 71}, {"test": 146}),
}


def difference_to_official(name: str, num_train: int, num_dev: dict[str, int]) -> str:
    """Empty for the official splits; otherwise what differs, for every table that shows the score."""
    task = GLUE[name]
    parts = [] if num_train in task.num_train else [f"train {num_train} of {task.num_train[0]}"]
    for split, size in num_dev.items():
        official = task.num_dev.get(split, next(iter(task.num_dev.values())))
        if split not in task.num_dev or size != official:
            parts.append(f"{split} {size} of {official}")
    return f"not GLUE's split: {', '.join(parts)}" if parts else ""


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
    splits = _load(name.lower().replace("-", ""), revision)
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
