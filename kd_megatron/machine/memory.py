"""The most bytes of tensors that a process holds at once while it trains: what `plan` predicts.

Weights, gradients, optimizer, buffers of DeepSpeed and activations are all in it. Resident memory is another number: it
has the libraries, what the C library keeps of freed memory, and not the pages of a buffer that nobody has written to.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEASURED_STEP = 2  # of a process: the first one makes the optimizer's state only at its end


class Living(TorchDispatchMode):
    """Follows the storages that operations make, until they are gone, whichever thread frees them.

    What a single operation allocates and frees inside itself is out of sight. Tensors that were there before cost
    nothing, unless they are ``counted``.
    """

    def __init__(self, counted: list[Tensor] | None = None) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._bytes = 0
        self._known: set[int] = set()  # addresses of living storages, made here or seen as an argument
        for tensor in counted or []:
            self._add(tensor.untyped_storage(), tensor.untyped_storage().nbytes())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors(args, kwargs):
            self._add(tensor.untyped_storage(), num_bytes=0)
        results = function(*args, **(kwargs or {}))
        for tensor in _tensors(results):
            storage = tensor.untyped_storage()
            self._add(storage, storage.nbytes())
        return results

    def _add(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        address = storage._cdata
        if address not in self._known:
            self._known.add(address)
            weakref.finalize(storage, self._remove, address, num_bytes).atexit = False
            self._bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _remove(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self._bytes -= num_bytes


class MemoryMeter:
    """Measures one training step on a GPU, whose allocator keeps the peak; made before the models are built.

    On a processor nothing keeps it. Looking at every tensor there is, as tests do, is not safe in a run: while the
    collector lists all objects, another thread may be building one of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._measures = device.type == "cuda"
        self._num_steps = 0
        self._bytes_before = torch.cuda.memory_allocated() if self._measures else 0
        self.peak_bytes: int | None = None  # until the measured step is over, and on a processor

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around each training step."""
        self._num_steps += 1
        measures = self._measures and self._num_steps == MEASURED_STEP
        if measures:
            torch.cuda.reset_peak_memory_stats()
        yield
        if measures:
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._bytes_before


def _tensors(*tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
