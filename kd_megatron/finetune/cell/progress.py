"""What training a cell came to so far: its curves, its counts, its time."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd_megatron.finetune.cell.evaluate import require_finite

KEPT = ("step", "curve", "dev_curve", "num_examples", "dev_seconds")  # of `Progress`, as they are


@dataclass
class CellProgress:
    """What training one cell came to so far."""

    device: torch.device
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    dev_curve: list[dict[str, float]] = field(default_factory=list)
    num_examples: int = 0
    train_seconds: float = 0.0
    dev_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._start_point()
        self._started = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a cell that is not finished; a float32 is a float64 without loss."""
        kept = {name: getattr(self, name) for name in KEPT}
        return {**kept, "loss_sum": self._loss_sum.item(), "num_since": self._num_since, "seconds": self._seconds()}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        for name in KEPT:
            setattr(self, name, kept[name])
        self._loss_sum.fill_(kept["loss_sum"])
        self._num_since = kept["num_since"]
        self._started -= kept["seconds"]

    def end(self) -> None:
        """Training is over: fix its time."""
        self.train_seconds = self._seconds() - self.dev_seconds

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def add(self, loss: Tensor, num_examples: int) -> None:
        """Count a step with the mean ``loss`` of ``num_examples``; waits for nothing."""
        self._loss_sum += loss * num_examples
        self._num_since += num_examples
        self.num_examples += num_examples
        self.step += 1

    def end_point(self, cell: str, learning_rate: float) -> None:
        """A point of the learning curve: the mean loss since the last one. Waits for the device."""
        loss = require_finite(self._loss_sum / self._num_since, f"{cell}: the loss", f" by step {self.step}").item()
        point = {"step": self.step, "examples": self.num_examples, "loss": loss, "learning_rate": learning_rate}
        self.curve.append(point)
        self._start_point()

    def _start_point(self) -> None:
        self._loss_sum, self._num_since = torch.zeros((), device=self.device), 0
