"""What a finished cell leaves beside its json: its outputs on every split (.npz), and its curves for TensorBoard.

Both are complete or absent, and written before the json, which alone says that the cell is finished. And, once for the
whole output, the machines that cells were run on.

Shapes: N examples of a split, C classes.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kd_megatron import dist, logs, machine
from kd_megatron.errors import OutputError, disk_full_is_clear

MACHINES = "machines.json"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")  # whose versions scores depend on
TENSORBOARD = "tensorboard"  # directory of the output
PREDICTIONS = ".npz"
SETTINGS = ("learning_rate", "batch_size", "seed")  # what TensorBoard's table of cells can be sorted by


def predictions_path(cell_path: Path) -> Path:
    """The file of a cell's outputs, beside its json."""
    return cell_path.with_suffix(PREDICTIONS)


def write_predictions(path: Path, predictions: Mapping[str, np.ndarray]) -> None:
    """Write a cell's outputs, all or nothing; equal outputs give equal bytes.

    Args:
        path: the .npz file; its directory is made.
        predictions: split name -> fp32 outputs in the split's order, [N, C] logits or [N] values of a regression.

    Raises:
        OutputError: the disk is full.
    """
    aside = path.with_name(path.name + ".partial")
    with disk_full_is_clear(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            parts: dict[str, Any] = {name: np.asarray(part, np.float32) for name, part in predictions.items()}
            np.savez(file, allow_pickle=False, **parts)
        os.replace(aside, path)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """What `write_predictions` wrote. Raises `OutputError` when there is no such file or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise OutputError(
            given=f"{path} does not exist",
            expected="the outputs of a finished cell",
            fix="remove the json file of the same name and give the same command again, with save_predictions: true",
        ) from error
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise OutputError(
            given=f"{path} is damaged: {error}",
            expected="the outputs that a finished cell wrote",
            fix="remove it and the json file of the same name, and give the same command again",
        ) from error


def tensorboard_path(output: Path, cell_path: Path) -> Path:
    """The directory of a cell's curves: OUTPUT/tensorboard/TASK/CELL."""
    return output / TENSORBOARD / cell_path.relative_to(output).parts[0] / cell_path.stem


def write_tensorboard(directory: Path, content: Mapping[str, Any]) -> None:
    """Write a cell's curves and final metrics for TensorBoard, all or nothing (x axis: examples trained on).

    Args:
        directory: of this cell alone; what a killed process left there is replaced.
        content: the cell's, as in its json file.

    Raises:
        OutputError: the disk is full.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    aside = directory.with_name(directory.name + ".partial")
    last = {**{f"final/{name}": value for name, value in content["metrics"].items()}, "final/score": content["score"]}
    with disk_full_is_clear(directory):
        for stale in (aside, directory):
            shutil.rmtree(stale, ignore_errors=True)
        with SummaryWriter(str(aside)) as board:
            points = [("train", point) for point in content["learning_curve"]]
            points += [("dev", point) for point in content["dev_curve"]]
            for part, point in points:
                for name in point.keys() - {"step", "examples"}:
                    board.add_scalar(f"{part}/{name}", point[name], point["examples"])
            for name, value in last.items():
                board.add_scalar(name, value, content["num_examples"])
            for summary in hparams({name: content[name] for name in SETTINGS}, last):
                board._get_file_writer().add_summary(summary)
        os.replace(aside, directory)


def record_machine(output: Path, cell_paths: Iterable[Path]) -> None:
    """Add commit, versions and hardware of this start to OUTPUT/machines.json, unless they are there already, or all
    cells are. Rank 0 alone writes.

    Raises:
        OutputError: the disk is full.
    """
    path = output / MACHINES
    if not dist.is_main() or all(cell.is_file() for cell in cell_paths):
        return
    facts = machine.facts(PACKAGES)
    facts["hardware"]["num_processes"] = dist.world_size()
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        recorded = []
    if facts not in recorded:
        with disk_full_is_clear(path):
            logs.write_json(path, [*recorded, facts])
