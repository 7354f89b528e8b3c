"""A cell on its way, kept every few minutes: a stop of any kind costs those minutes and not the hours of a large task.

One safetensors file beside the cell's json has weights, Adam's moments, dropout's generators and what was measured so
far. A cell that goes on from it ends with the numbers of one that was never stopped, to the last digit.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_megatron.console import logs
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.ranks.failures import seconds_of

SUFFIX = ".unfinished.safetensors"
SAVE_SECONDS = "KD_FINETUNE_SAVE_SECONDS"  # between two saves
DEFAULT_SAVE_SECONDS = 300.0  # much beside the second that writing takes, and little to lose
MODEL, OPTIMIZER, GENERATOR = "model.", "optimizer.", "generator."  # what a tensor's name begins with


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
