"""Trains cells (an arm with changed recipe keys) one after another, in one process group; rank 0 writes the ends.

python cells_worker.py INPUTS OUTPUT CELLS      CELLS: a JSON file, a list of `Cell`s as mappings; OUTPUT: a directory
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import processes
import torch
from curves import Curve, learn
from safetensors.torch import load_file, save_file
from tiny_study import ARMS, tiny_study
from torch import Tensor

from kd_megatron.console import logs
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.training.setup import Run, prepare_run

RATE = 3e-3


@dataclass(frozen=True)
class Cell:
    name: str
    arm: str
    num_steps: int
    changes: dict[str, Any] = field(default_factory=dict)  # of `tiny_study`


@dataclass(frozen=True)
class End:
    """What a cell came to."""

    curve: Curve
    weights: dict[str, Tensor]  # whole, float32
    first_weights: dict[str, Tensor]
    untrained: list[str]
    teacher_bytes: int  # of parameters that this process holds, 0 without a teacher
    teacher_is_whole: bool


def end_of(cell: Cell, inputs: Path, directory: Path) -> End:
    """Train the cell."""
    study = tiny_study(inputs, arms={cell.arm: ARMS[cell.arm]}, **cell.changes)
    run = prepare_run(study, cell.arm, 0, directory / cell.name, str(inputs / "teacher"))
    first = run.engine.full_weights()
    curve = learn(run, cell.num_steps, RATE)
    end = End(curve, run.engine.full_weights(), first, run.place.never_trained, *_of_teacher(run))
    run.close()
    return end


def _of_teacher(run: Run) -> tuple[int, bool]:
    """(bytes of the teacher's parameters here, whether each of them is whole)."""
    if run.step.teacher is None:
        return 0, True
    parameters: list[Any] = list(run.step.teacher.encoder.parameters())
    here = [[p.data, *([p.ds_tensor] if hasattr(p, "ds_tensor") else [])] for p in parameters]
    num_bytes = sum(tensor.nbytes for tensors in here for tensor in tensors)
    return num_bytes, not any(hasattr(p, "ds_id") for p in parameters)


def run_cells(cells: list[Cell], inputs: Path, directory: Path, world_size: int) -> dict[str, End]:
    """The ends of all cells, by name, trained by ``world_size`` processes of their own."""
    directory.mkdir(parents=True)
    listing = directory / "cells.json"
    listing.write_text(json.dumps([asdict(cell) for cell in cells]), encoding="utf-8")
    program = [__file__, str(inputs), str(directory), str(listing)]
    processes.run(program, world_size, timeout_seconds=300 + 30 * len(cells))
    return {cell.name: _read(directory / f"{cell.name}.end") for cell in cells}


def _write(end: End, path: Path) -> None:
    path.mkdir()
    for name in ("weights", "first_weights"):
        save_file(getattr(end, name), path / f"{name}.safetensors")
    rest = {key: value for key, value in vars(end).items() if "weights" not in key}
    (path / "rest.json").write_text(json.dumps(rest), encoding="utf-8")


def _read(path: Path) -> End:
    weights = {name: load_file(path / f"{name}.safetensors") for name in ("weights", "first_weights")}
    return End(**json.loads((path / "rest.json").read_text(encoding="utf-8")), **weights)


if __name__ == "__main__":
    inputs, directory = Path(sys.argv[1]), Path(sys.argv[2])
    logs.quiet_libraries()
    dist.initialise()
    for described in json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")):
        cell = Cell(**described)
        end = end_of(cell, inputs, directory)
        if dist.is_main():
            _write(end, directory / f"{cell.name}.end")
    torch.distributed.barrier()
    dist.shut_down()
    exit_process(0)
