"""The nine GLUE tasks (Wang et al. 2019): where their columns are, their labels, metrics and official sizes.

The local layout is that of GLUE's own download (TASK/train.tsv, TASK/dev.tsv); the hub's is ``nyu-mll/glue``. Both
give the same rows. A split whose row count is not the official one is partial or a substitute, and is named so.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_megatron.errors import DataError
from kd_megatron.finetune.tables import Row, read_tsv, row_from_fields

HUB_DATASET = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # whose row counts are the official ones below
COLA_COLUMNS = ("source", "label", "mark", "sentence")  # CoLA's files have no header line


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE."""

    text: tuple[str, ...]  # columns of the local files
    num_train: tuple[int, ...]  # official sizes
    num_dev: dict[str, int]  # name of the dev split -> official size; the first one decides the score
    labels: tuple[str, ...] = ("0", "1")  # local spelling, in the hub's order; empty for regression
    metric: str = "accuracy"
    label: str = "label"
    header: tuple[str, ...] | None = None
    hub_name: str = ""
    hub_text: tuple[str, ...] = ()  # where the hub names the columns differently
    max_torn_rows: int = 0
    hub_dev: dict[str, str] = field(default_factory=lambda: {"dev": "validation"})


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "CoLA": GlueTask(("sentence",), (8551,), {"dev": 1043}, metric="matthews", header=COLA_COLUMNS, hub_name="cola"),
    "SST-2": GlueTask(("sentence",), (67349,), {"dev": 872}, hub_name="sst2"),
    "MRPC": GlueTask(
        ("#1 String", "#2 String"),
        (3668,),
        {"dev": 408},
        metric="f1_accuracy",
        label="Quality",
        hub_name="mrpc",
        hub_text=PAIR,
    ),
    "STS-B": GlueTask(
        PAIR, (5749,), {"dev": 1500}, labels=(), metric="pearson_spearman", label="score", hub_name="stsb"
    ),
    "QQP": GlueTask(
        ("question1", "question2"),
        (363846, 363849),  # without and with the torn rows of GLUE's own file
        {"dev": 40430},
        metric="f1_accuracy",
        label="is_duplicate",
        hub_name="qqp",
        max_torn_rows=5,
    ),
    "MNLI": GlueTask(
        PAIR,
        (392702,),
        {"dev_matched": 9815, "dev_mismatched": 9832},
        labels=("entailment", "neutral", "contradiction"),
        label="gold_label",
        hub_name="mnli",
        hub_text=("premise", "hypothesis"),
        hub_dev={"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    ),
    "QNLI": GlueTask(("question", "sentence"), (104743,), {"dev": 5463}, labels=ENTAILMENT, hub_name="qnli"),
    "RTE": GlueTask(PAIR, (2490,), {"dev": 277}, labels=ENTAILMENT, hub_name="rte"),
    "WNLI": GlueTask(PAIR, (635,), {"dev": 71}, hub_name="wnli"),
}


def read_local(name: str, directory: Path) -> tuple[list[Row], dict[str, list[Row]]]:
    """Train rows and dev rows of the task ``name`` from ``directory``/``name``."""
    task, folder = GLUE[name], directory / name
    if not folder.is_dir():
        present = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
        raise DataError(
            given=f"{folder} does not exist; {directory} holds: {', '.join(present) or 'no task'}",
            expected=f"a directory {name} with train.tsv and dev.tsv",
            fix="correct glue_path, or leave the task out",
        )
    files = {split: folder / f"{split}.tsv" for split in task.num_dev if (folder / f"{split}.tsv").exists()}
    files = files or {"dev": folder / "dev.tsv"}  # MNLI without its two official dev sets
    for path in (folder / "train.tsv", *files.values()):
        if not path.exists():
            raise DataError(
                given=f"{path} does not exist",
                expected=f"train.tsv and {' or '.join(f'{split}.tsv' for split in task.num_dev)} in {folder}",
                fix="add the file, or leave the task out",
            )

    def read(path: Path) -> list[Row]:
        return read_tsv(path, task.text, task.label, task.header, task.max_torn_rows)

    return read(folder / "train.tsv"), {split: read(path) for split, path in files.items()}


def read_hub(name: str, revision: str | None = None) -> tuple[list[Row], dict[str, list[Row]]]:
    """Train rows and dev rows of the task ``name`` from the Hugging Face hub, at ``revision`` or the one we know."""
    import datasets

    task = GLUE[name]
    try:
        splits = datasets.load_dataset(HUB_DATASET, task.hub_name, revision=revision or HUB_REVISION)
    except Exception as error:  # no connection shows as one of a dozen types, by library and version
        raise DataError(
            given=f"{HUB_DATASET} ({task.hub_name}) could not be loaded from the hub: {error}",
            expected="a connection to huggingface.co, or its cached copy",
            fix="connect, or set glue_path to a directory with GLUE's files (TASK/train.tsv, TASK/dev.tsv)",
        ) from error
    devs = {split: rows_from_hub(name, splits[hub_split], hub_split) for split, hub_split in task.hub_dev.items()}
    return rows_from_hub(name, splits["train"], "train"), devs


def rows_from_hub(name: str, examples: Iterable[dict[str, Any]], split: str) -> list[Row]:
    """Hub examples as the rows the local files would give: the class index becomes the local spelling."""
    task, rows = GLUE[name], []
    for index, example in enumerate(examples):
        place, label = f"{HUB_DATASET}/{name}/{split}:{index}", example["label"]
        if task.labels and not 0 <= label < len(task.labels):
            raise DataError(given=f"{place} has the unknown label index {label}", expected="a labelled example")
        fields = {**example, "label": task.labels[label] if task.labels else label}
        rows.append(row_from_fields(place, fields, task.hub_text or task.text, "label"))
    return rows


def difference_to_official(name: str, num_train: int, num_dev: dict[str, int]) -> str:
    """Empty for the official splits; otherwise what differs, for every table that shows the score."""
    task = GLUE[name]
    parts = [] if num_train in task.num_train else [f"train {num_train} of {task.num_train[0]}"]
    for split, size in num_dev.items():
        official = task.num_dev.get(split, next(iter(task.num_dev.values())))
        if split not in task.num_dev or size != official:
            parts.append(f"{split} {size} of {official}")
    return f"not GLUE's split: {', '.join(parts)}" if parts else ""
