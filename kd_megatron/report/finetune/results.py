"""What the fine-tuning stage left in its output, read back: the summary, every cell's file, the machines it ran on."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.analysis import summaries
from kd_megatron.analysis.once import once
from kd_megatron.analysis.statistics import Estimate, estimate
from kd_megatron.analysis.summaries import FinetuneSummary, TaskSummary
from kd_megatron.errors import DataError, OutputError
from kd_megatron.finetune.places import MACHINES, SUMMARY, Cell, cell_path
from kd_megatron.study.layout import read_summary

CELLS = "cells.jsonl"  # of a page that is kept in a repository: the files of all cells, one a line

Setting = tuple[float, int]  # learning rate, batch size


@dataclass(frozen=True)
class FinetuneResults:
    """One model's fine-tuning, finished."""

    directory: Path
    summary: FinetuneSummary
    cells: dict[str, list[dict[str, Any]]]  # task -> contents of its cells' files, in the order of the grid
    machines: list[dict[str, Any]]  # commit, versions and hardware of each start, equal ones once

    @property
    def model(self) -> str:
        """The model's name: its directory, and what that lies in where the directory is only called export."""
        path = Path(self.summary.model or "")
        return f"{path.resolve().parent.name}/export" if path.name == "export" else path.name

    @property
    def tasks(self) -> dict[str, TaskSummary]:
        """Task -> its part of the summary."""
        return self.summary.tasks

    @property
    def seconds(self) -> float:
        """Training and evaluation of all cells; started again or on several processes, they took other wall time."""
        parts = [cell for cells in self.cells.values() for cell in cells]
        return sum(cell.get("train_seconds", 0.0) + cell.get("dev_seconds", 0.0) for cell in parts)

    def settings(self, task: str) -> list[Setting]:
        """Learning rates and batch sizes of the task's cells, in the order of the grid."""
        return list(dict.fromkeys(setting_of(cell) for cell in self.tasks[task].cells))

    @once
    def scores(self, task: str, setting: Setting) -> Estimate | None:
        """Mean over the seeds that a setting ran with."""
        return estimate([cell["score"] for cell in self.tasks[task].cells if setting_of(cell) == setting])

    def best(self, task: str) -> Setting:
        """The setting whose score is the task's."""
        return setting_of(self.tasks[task].best_cell)

    def best_cells(self, task: str) -> list[dict[str, Any]]:
        """Contents of the cells of the task's best setting, one for each seed."""
        return [cell for cell in self.cells[task] if setting_of(cell) == self.best(task)]

    @once
    def average(self) -> Estimate | None:
        """The average over tasks, with an interval over seeds where all tasks ran with the same ones."""
        by_task = [task.scores for task in self.tasks.values()]
        if any(scores.keys() != by_task[0].keys() for scores in by_task):
            return Estimate(1, self.summary.average)
        return estimate([sum(scores[seed] for scores in by_task) / len(by_task) for seed in by_task[0]])


def setting_of(cell: dict[str, Any]) -> Setting:
    """(learning rate, batch size) of a cell."""
    return cell["learning_rate"], cell["batch_size"]


def load(directory: Path) -> FinetuneResults:
    """Read the output of a finished fine-tuning, or a page of one that is kept in a repository.

    Raises:
        OutputError: it is none, it is not finished, or files of it are missing or damaged.
    """
    summary = summaries.finetuning(directory) if "tasks" in (read_summary(directory) or {}) else None
    if summary is None:
        raise OutputError(
            given=f"{directory} holds no finished fine-tuning: there is no {SUMMARY} with scores of tasks",
            expected="the --output of a fine-tuning that ended, such as runs/finetune-NAME",
            fix="check the path, or give the same finetune command again until it ends",
        )
    read = _kept_cells(directory) if (directory / CELLS).is_file() else functools.partial(_read_cell, directory)
    cells = {task: [read(task, cell) for cell in part.cells] for task, part in summary.tasks.items()}
    path = directory / MACHINES
    machines = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return FinetuneResults(directory, summary, cells, machines)


def _kept_cells(directory: Path) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """What gives the content of a cell of a kept page."""
    path = directory / CELLS
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_key = {cell["key"]: cell for cell in found}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error

    def read(task: str, cell: dict[str, Any]) -> dict[str, Any]:
        if cell["key"] not in by_key:
            raise _damaged(path, f"no cell {cell['key']} of {task}")
        content: dict[str, Any] = by_key[cell["key"]]
        return content

    return read


def _damaged(path: Path, problem: str) -> OutputError:
    return OutputError(
        given=f"{path} cannot be read: {problem}",
        expected="the cells that the summary beside it names, one a line",
        fix="take the file as it was committed, or write the page again from the output of the fine-tuning",
    )


def _read_cell(directory: Path, task: str, cell: dict[str, Any]) -> dict[str, Any]:
    path = cell_path(directory, Cell(task, cell["learning_rate"], cell["batch_size"], cell["seed"]), cell["key"])
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OutputError(
            given=f"{path} cannot be read: {error}",
            expected="the file of a cell that the summary names",
            fix="give the same finetune command again: a cell without its file is done again",
        ) from error


@dataclass(frozen=True)
class OthersScores:
    """What others report of models of this kind, from a JSON file that is kept with the page."""

    rows: list[dict[str, Any]]  # model, source, scores: {task: points}
    remarks: list[str]


def read_published(path: Path) -> OthersScores:
    """Read published scores: ``{"rows": [{"model", "source", "scores": {task: points}}], "remarks": [...]}``.

    Raises:
        DataError: the file is absent or of another form.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {
                "model": str(row["model"]),
                "source": str(row["source"]),
                "scores": {task: float(value) for task, value in row["scores"].items()},
            }
            for row in raw["rows"]
        ]
        return OthersScores(rows, [str(remark) for remark in raw.get("remarks", [])])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            given=f"{path} cannot be used: {type(error).__name__} {error}",
            expected='{"rows": [{"model": ..., "source": ..., "scores": {task: points of 100}}], "remarks": [...]}',
            fix="correct the file; docs/results/glue_minilm/published.json is an example",
        ) from error
