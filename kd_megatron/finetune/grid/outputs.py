"""What a finished cell leaves beside its json: its outputs on every split (.npz), and its curves for TensorBoard.

Both are complete or absent, and written before the json, which alone says that the cell is finished. And, once for the
whole output, the machines that cells were run on.

Shapes: N examples of a split, C classes.
"""

import json
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kd_megatron.errors import OutputError, disk_full_is_clear
from kd_megatron.files import atomic, records
from kd_megatron.finetune.places import MACHINES
from kd_megatron.machine import facts as machine
from kd_megatron.ranks import dist

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")  # whose versions scores depend on
TENSORBOARD = "tensorboard"  # directory of the output
EVENTS = "events.out.tfevents.0"  # a name that TensorBoard looks for
PREDICTIONS = ".npz"
SETTINGS = ("learning_rate", "batch_size", "seed")  # what TensorBoard's table of cells can be sorted by


def predictions_path(cell_path: Path) -> Path:
    """The file of a cell's outputs, beside its json."""
    return cell_path.with_suffix(PREDICTIONS)


def write_predictions(path: Path, predictions: Mapping[str, np.ndarray]) -> None:
    """Write a cell's outputs, all or nothing; equal outputs give equal bytes.

    Args:
        predictions: split name -> fp32 outputs in the split's order, [N, C] logits or [N] values of a regression.

    Raises:
        OutputError: the disk is full.
    """
    parts: dict[str, Any] = {name: np.asarray(part, np.float32) for name, part in predictions.items()}
    with disk_full_is_clear(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path) as aside, aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **parts)


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

    Raises:
        OutputError: the disk is full.
    """
    with disk_full_is_clear(directory), atomic.new_directory(directory) as aside, (aside / EVENTS).open("wb") as file:
        _write_events(file, content)


def _write_events(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """TensorBoard's records, written here and now: its own writer has a thread, whose errors nobody hears."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams, scalar

    last = {**{f"final/{name}": value for name, value in content["metrics"].items()}, "final/score": content["score"]}
    values = [
        (f"{curve}/{name}", point[name], point["examples"])
        for curve, points in (("train", content["learning_curve"]), ("dev", content["dev_curve"]))
        for point in points
        for name in point
        if name not in ("step", "examples")
    ]
    values += [(name, value, content["num_examples"]) for name, value in last.items()]
    settings = hparams({name: content[name] for name in SETTINGS}, last)
    events = [Event(file_version="brain.Event:2")]
    events += [Event(step=step, summary=scalar(name, value)) for name, value, step in values]
    events += [Event(summary=summary) for summary in settings]
    writer, now = RecordWriter(file), time.time()
    for event in events:
        event.wall_time = now
        writer.write(event.SerializeToString())


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
            records.write_json(path, [*recorded, facts])
