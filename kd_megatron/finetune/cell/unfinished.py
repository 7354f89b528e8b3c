"""A cell on its way: what it came to so far, kept every few minutes, so that a stop costs those and not a task's hours.

One safetensors file beside the cell's json has weights, Adam's moments, dropout's generators and what was measured so
far. A cell that goes on from it ends with the numbers of one that was never stopped, to the last digit.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_megatron.console import logs
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.finetune.cell.evaluate import require_finite
from kd_megatron.ranks.failures import seconds_of

KEPT = ("step", "curve", "dev_curve", "num_examples", "dev_seconds")  # of `Progress`, as they are
SUFFIX = ".unfinished.safetensors"
SAVE_SECONDS = "KD_FINETUNE_SAVE_SECONDS"  # between two saves
DEFAULT_SAVE_SECONDS = 300.0  # much beside the second that writing takes, and little to lose
MODEL, OPTIMIZER, GENERATOR = "model.", "optimizer.", "generator."  # what a tensor's name begins with


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


class Unfinished:
    """The file of one cell on its way.

    Args:
        cell_path: the json file that the cell will end as.
    """

    def __init__(self, cell_path: Path) -> None:
        self.path = cell_path.with_suffix(SUFFIX)
        self._every_seconds = seconds_of(SAVE_SECONDS, DEFAULT_SAVE_SECONDS, least=0.0)
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a save."""
        return time.monotonic() - self._saved_at >= self._every_seconds

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, measured: dict[str, Any]) -> None:
        """Write the state between two steps, all or nothing.

        Args:
            model: its parameters are kept; its device's generator too.
            optimizer: Adam, or another whose state is tensors.
            measured: plain data for `restore` to return.

        Raises:
            OutputError: the disk is full.
        """
        tensors = {MODEL + name: parameter.detach() for name, parameter in model.named_parameters()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{OPTIMIZER}{index}.{name}": tensor for name, tensor in state.items()}
        tensors |= {GENERATOR + name: state for name, state in _generators(model).items()}
        with disk_full_is_clear(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.new_file(self.path) as aside:
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, aside, {"measured": json.dumps(measured)})
        self._saved_at = time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Go on from the file: fills ``model``, ``optimizer`` and generators.

        None when there is none that is whole, or it is of another kind of device, whose dropout draws otherwise.
        """
        try:
            with safe_open(self.path, "pt") as file:
                measured: dict[str, Any] = json.loads(file.metadata()["measured"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            logs.warn_of_own(f"{self.path} is damaged ({error}): the cell starts anew")
            return None
        if differing := _differing(model, tensors):
            logs.warn_of_own(f"{self.path} does not fit ({differing}): the cell starts anew")
            return None
        _fill(model, optimizer, tensors)
        return measured

    def remove(self) -> None:
        """The cell is finished, or given up."""
        self.path.unlink(missing_ok=True)
        atomic.partial(self.path).unlink(missing_ok=True)  # of a process that was killed in a save


def _differing(model: nn.Module, tensors: dict[str, Tensor]) -> str:
    """What the model needs and ``tensors`` lack, or have of another device, in words; empty when nothing is."""
    needed = {MODEL + name: parameter.shape for name, parameter in model.named_parameters()}
    needed |= {GENERATOR + name: state.shape for name, state in _generators(model).items()}
    absent = [name for name, shape in needed.items() if name not in tensors or tensors[name].shape != shape]
    if absent:
        return f"no {absent[0]} of {list(needed[absent[0]])}"
    foreign = [name for name in tensors if name.startswith(GENERATOR) and name not in needed]
    return f"{foreign[0]} is of another device" if foreign else ""


def _fill(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[MODEL + name])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, key = name.removeprefix(OPTIMIZER).split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    torch.set_rng_state(tensors[GENERATOR + "cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[GENERATOR + "cuda"], device)


def _generators(model: nn.Module) -> dict[str, Tensor]:
    """What dropout draws from."""
    device = next(model.parameters()).device
    of_device = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **of_device}
