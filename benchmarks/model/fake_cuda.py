"""A fake GPU: tensors on `cuda` have shapes and no numbers, tensors on the CPU are as real as ever.

So the code of a run does on the fake device what it does on a GPU, up to the numbers: data is read and counted on the
CPU, batches are pinned and copied; models, losses, gradients and optimizer run by PyTorch's own rules for shapes,
dtypes and devices. Triton's kernels are not run: each launch is passed to the observers. What is outside the hot loop
may read the device, and reads zeros.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from benchmarks.model import fake_library
from benchmarks.model.fake_modules import Moves, fused_attention, made_on_the_host
from benchmarks.model.places import place
from kd_megatron.engine.build import start_deepspeed
from kd_megatron.models import layers
from kd_megatron.ranks import dist

Observer = Callable[[Any, Sequence[Any], dict[str, Any], Any], None]  # operator, arguments, keywords, results
LaunchObserver = Callable[[str, dict[str, Any]], None]  # name of a Triton kernel, its arguments by their names

READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "is_nonzero", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_"}
aten = torch.ops.aten


class FakeCudaError(RuntimeError):
    """The code did what fails on a GPU, or what makes the host wait for it where it must not."""


class FakeCuda(TorchDispatchMode):
    """The fake device, while it is entered (`fake_cuda`)."""

    def __init__(self) -> None:
        super().__init__()
        self.observers: list[Observer] = []
        self.launch_observers: list[LaunchObserver] = []
        self._fakes = _Fakes(allow_non_fake_inputs=False)
        self._is_hot = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """So that `torch.compile` compiles beside it; what is compiled then runs on it."""
        return True

    @contextlib.contextmanager
    def hot(self) -> Iterator[None]:
        """A block in which the host must not wait for the device: reads and blocking copies raise `FakeCudaError`."""
        self._is_hot = True
        try:
            yield
        finally:
            self._is_hot = False

    def wait(self, *_: Any, **__: Any) -> None:
        """What stands for every call that waits for the device."""
        if self._is_hot:
            raise FakeCudaError(f"{place()}: the host waits for the device")

    def on_host(self, tensor: Tensor, name: str) -> Tensor:
        """``tensor`` as the host reads it, which it must not where the block is hot."""
        if isinstance(tensor, FakeTensor) and self._is_hot:
            raise FakeCudaError(f"{place()}: the host reads the device ({name})")
        return _zeros(tensor)

    def launch(self, name: str, arguments: dict[str, Any]) -> None:
        """A Triton kernel is launched."""
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor):
                raise FakeCudaError(f"{place()}: kernel {name} is given a tensor on {tensor.device}")
        for observe in self.launch_observers:
            observe(name, arguments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_device = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        if not on_device and not any(_is_cuda(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            return self._exchange(func, args, kwargs)
        if (name in READS and on_device) or (name == "index" and _has_fake_mask(args)):
            return self._read(func, name, args, kwargs)
        if name in COPIES:
            return self._copy(func, name, args, kwargs)
        results = self._run(func, self._refuse_mixed(name, args), self._refuse_mixed(name, kwargs))
        self._tell(func, args, kwargs, results)
        return results

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        leaves = [self._faked(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, form)
        with self._fakes:
            return func(*args, **kwargs)

    def _faked(self, tensor: Tensor) -> Tensor:
        """A real tensor's shape. Not by `from_tensor`, which would keep the tensor for as long as there is the mode."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._fakes:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)

    def _tell(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        for observe in self.observers:
            observe(func, args, kwargs, results)

    def _refuse_mixed(self, name: str, arguments: Any) -> Any:
        """A number of the CPU (no dimensions) may go along to a kernel, places of an index are copied, which blocks."""
        if name.endswith("_like") or name.startswith("new_"):  # which ask a tensor for its shape alone
            return arguments
        for leaf in tree_leaves(arguments):
            if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor) or leaf.dim() == 0:
                continue
            if name not in INDEXED or leaf.is_floating_point():
                raise FakeCudaError(f"{place()}: {name} mixes a tensor on {leaf.device} {list(leaf.shape)} with cuda")
            if self._is_hot:
                raise FakeCudaError(f"{place()}: a blocking copy to the device, of the places of {name}")
        return arguments

    def _read(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The host asks for values, or for a shape that depends on them."""
        real_args, real_kwargs = tree_map_only(Tensor, lambda one: self.on_host(one, name), (args, kwargs))
        return tree_map_only(Tensor, self._back, func(*real_args, **real_kwargs))

    def _exchange(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A collective of one process changes nothing: it is carried out on one number, for what it returns besides."""
        args_of_one, kwargs_of_one = tree_map_only(Tensor, lambda one: torch.zeros(1, dtype=one.dtype), (args, kwargs))
        results = func(*args_of_one, **kwargs_of_one)
        return (args[0], *results[1:]) if isinstance(results, tuple) else results

    def _back(self, tensor: Tensor) -> Tensor:
        return self._run(aten._to_copy.default, (tensor,), {"device": torch.device("cuda", 0)})

    def _copy(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Within the device, to it (which must not block in the hot loop) or from it (which always does)."""
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
        from_device, to_device = isinstance(source, FakeTensor), _is_cuda(torch.device(target))
        if from_device and not to_device:
            return func(*tree_map_only(Tensor, lambda one: self.on_host(one, f"{name} to {target}"), args), **kwargs)
        if not from_device and to_device and self._is_hot:
            is_async = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if not is_async or not source.is_pinned():
                kind = "a blocking copy" if not is_async else "a copy of memory that is not pinned"
                raise FakeCudaError(f"{place()}: {kind} to the device, {list(source.shape)} {source.dtype}")
        results = self._run(func, args, kwargs)
        self._tell(func, args, kwargs, results)
        return results


class _Fakes(FakeTensorMode):
    """One for all its tensors, those too that are copied with all that they refer to."""

    def __deepcopy__(self, memo: Any) -> "_Fakes":
        return self


def _is_cuda(leaf: Any) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


def _has_fake_mask(args: Any) -> bool:
    masks = [one for one in args[1] if one is not None]
    return any(isinstance(one, FakeTensor) and one.dtype in (torch.bool, torch.uint8) for one in masks)


def _zeros(tensor: Tensor) -> Tensor:
    """What the host reads of a fake tensor."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A GPU that is not there, for the ``with`` block; the process has none again after it. Joins the process group.

    Raises:
        EnvironmentFault: it cannot be had here (`fake_library.missing` says why).
    """
    library = fake_library.library()
    dist.initialise()  # on the CPU: there is no NCCL
    of_the_cpu = type(start_deepspeed().accelerator.get_accelerator())
    if library.install_fake_cuda():
        raise RuntimeError("a device guard for CUDA is installed already; allowed: one fake device at a time")
    mode = FakeCuda()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_as_if_there_were_a_gpu(mode, of_the_cpu))
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # the modes are of this thread
            stack.enter_context(mode)
            yield mode
    finally:
        library.remove_fake_cuda()


@contextlib.contextmanager
def _as_if_there_were_a_gpu(mode: FakeCuda, of_the_cpu: type) -> Iterator[None]:
    """What Python code asks torch, DeepSpeed and Triton of the GPU."""
    from benchmarks.model.fake_answers import DEEPSPEED_ACCELERATOR, TORCH_CUDA, accelerator, launches, streams

    with contextlib.ExitStack() as stack:
        for name, answer in (TORCH_CUDA | streams(mode.wait) | {"synchronize": mode.wait}).items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch(DEEPSPEED_ACCELERATOR, accelerator(of_the_cpu, mode.wait)))
        stack.enter_context(launches(mode.launch))
        stack.enter_context(patch.object(nn.Module, "_apply", Moves()))
        stack.enter_context(patch.object(layers, "scaled_dot_product_attention", fused_attention))
        stack.enter_context(patch.object(Tensor, "record_stream", lambda tensor, stream: None))
        for name in ("tolist", "numpy"):  # which PyTorch dispatches for no kind of tensor
            stack.enter_context(patch.object(Tensor, name, _reading(mode, getattr(Tensor, name))))
        stack.enter_context(made_on_the_host())
        yield


def _reading(mode: FakeCuda, read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda tensor, *args, **kwargs: read(mode.on_host(tensor, read.__name__), *args, **kwargs)
