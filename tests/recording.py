"""What a computation allocates: the shapes of all tensors that it makes, and the most bytes alive at one time."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Use as a context around forward and backward. It sees every operation, those inside autograd functions too.

    Tensors that exist before cost nothing, and neither do views of them. What a single operation allocates and frees
    inside itself (a contiguous copy for a matrix product, say) is out of sight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()  # of every result, views too
        self.largest_bytes = 0  # of one storage
        self.peak_bytes = 0
        self._live_bytes = 0
        self._sizes: dict[int, int] = {}  # address of a storage made here -> bytes
        self._outside: set[int] = set()  # addresses of storages made elsewhere

    def shapes_with(self, length: int, times: int = 2) -> list[tuple[int, ...]]:
        """The shapes in which ``length`` stands at least so many times; take a length that nothing else has."""
        return sorted(shape for shape in self.shapes if shape.count(length) >= times)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors(args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes and storage._cdata not in self._outside:
                self._outside.add(storage._cdata)
                weakref.finalize(storage, self._outside.discard, storage._cdata)
        results = function(*args, **kwargs)
        for tensor in _tensors(results):
            self.shapes.add(tuple(tensor.shape))
            self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._outside:
            return
        if address not in self._sizes:
            weakref.finalize(storage, self._release, address)
        self._live_bytes += num_bytes - self._sizes.get(address, 0)  # an out= argument may have grown
        self._sizes[address] = num_bytes
        self.largest_bytes = max(self.largest_bytes, num_bytes)
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def _release(self, address: int) -> None:
        self._live_bytes -= self._sizes.pop(address)


def _tensors(*tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def record(compute: Callable[[], Any]) -> Recording:
    """The recording of ``compute()``.

    The collector of reference cycles stands still meanwhile: Triton's interpreter leaves tensors in cycles, and
    whether they count must not hang on how much garbage other tests have made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with Recording() as recording:
            compute()
    finally:
        if was_enabled:
            gc.enable()
    return recording


@contextmanager
def new_buffers_hold_nan() -> Iterator[None]:
    """Every tensor made without values (`torch.empty` and its kin) is full of NaN: reading one unwritten shows."""
    torch.use_deterministic_algorithms(True)  # which is what fills them: torch.utils.deterministic
    try:
        assert torch.empty(1).isnan().item()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
