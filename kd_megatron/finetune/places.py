"""Where fine-tuning keeps what: the files of its output, told without the libraries that train."""

from dataclasses import dataclass
from pathlib import Path

OWNER = "model.json"  # whose scores an output directory holds
SUMMARY = "summary.json"
MACHINES = "machines.json"


@dataclass(frozen=True)
class Cell:
    """What one fine-tuning differs in from the others of its task."""

    task: str
    learning_rate: float
    batch_size: int
    seed: int  # as the recipe lists it; it names the cell
    used_seed: int | None = None  # what head, order and dropout are drawn from; None: the listed one

    @property
    def draws_from(self) -> int:
        """The seed of everything random."""
        return self.seed if self.used_seed is None else self.used_seed

    def __str__(self) -> str:
        return f"{self.task} lr {self.learning_rate:g} batch {self.batch_size} seed {self.seed}"


def cell_path(output: Path, cell: Cell, key: str) -> Path:
    """The file of a finished cell; its outputs lie beside it (`kd_megatron.finetune.grid.outputs`)."""
    name = f"lr_{cell.learning_rate:g}-batch_{cell.batch_size}-seed_{cell.seed}-{key}.json"
    return output / cell.task / "cells" / name
