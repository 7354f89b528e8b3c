"""Counts the operations at which a host waits for its device.

On a processor nothing waits; what would make the host wait if the tensors were on a GPU is counted instead: reading a
number (``item``, ``tolist``, ``bool(tensor)``), copies to the host, shapes that depend on values, and DeepSpeed's own
calls for a wait.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DISPATCHED = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
CALLED = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}  # on a processor these are not dispatched
# Functions that read on no device: the step's counts are of batches on the CPU, on any machine; the checks of the
# vocabulary kernels leave out, or leave to the device, what they would read where `is_cuda`.
ON_THE_HOST = {"_global_counts", "check_labels", "_promised_factor"}


class HostReads:
    """Counts host reads while it is entered: ``places`` by line of code, `by` of one package."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._modes = (_Dispatched(self), _Called(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def by(self, package: str) -> int:
        """How many reads code of ``package`` asked for, itself or through a library below it."""
        return sum(count for place, count in self.places.items() if place.startswith(package + "/"))

    def note(self, name: str) -> None:
        """Count one read, for the innermost frame of DeepSpeed or ours."""
        frames = traceback.extract_stack()
        if any(frame.name in ON_THE_HOST for frame in frames):
            return
        for frame in reversed(frames):
            for package in ("deepspeed", "kd_megatron"):
                _, found, file = frame.filename.partition(f"/{package}/")
                if found and "/tests/" not in frame.filename:
                    self.places[f"{package}/{file}:{frame.lineno} {frame.name}: {name}"] += 1
                    return

    def counting(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        """``wait``, counted when it is called."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note("wait")
            return wait(*args, **kwargs)

        return counted


class _Dispatched(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in DISPATCHED or by_mask:
            self.reads.note(name)
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CALLED:
            self.reads.note(func.__name__)
        return func(*args, **(kwargs or {}))
