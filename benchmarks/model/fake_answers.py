"""What libraries are answered when they ask for the GPU in Python, and who takes Triton's launches."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

Launch = Callable[[str, dict[str, Any]], None]

DEEPSPEED_ACCELERATOR = "deepspeed.accelerator.real_accelerator.ds_accelerator"


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


TORCH_CUDA: dict[str, Callable[..., Any]] = {
    "_lazy_init": _always(None),
    "is_available": _always(True),
    "device_count": _always(1),
    "current_device": _always(0),
    "set_device": _always(None),
    "_exchange_device": _always(0),
    "_maybe_exchange_device": _always(0),
    "is_bf16_supported": _always(True),
    "get_device_name": _always("a fake GPU"),
    "get_device_capability": _always((9, 0)),
    "get_device_properties": _always(SimpleNamespace(name="a fake GPU", major=9, minor=0, multi_processor_count=132)),
    "memory_allocated": _always(0),
    "max_memory_allocated": _always(0),
    "reset_peak_memory_stats": _always(None),
    "empty_cache": _always(None),
    "get_rng_state": lambda *_: torch.get_rng_state(),  # torch.compile puts them back after it has looked at a function
    "set_rng_state": _always(None),
}


def accelerator(of_the_cpu: type, wait: Callable[..., Any]) -> Any:
    """DeepSpeed's view of the GPU: its view of the CPU, but for where tensors live and what waits for it."""

    class FakeAccelerator(of_the_cpu):
        def device_name(self, device_index: int | None = None) -> str:
            return "cuda" if device_index is None else f"cuda:{device_index}"

        def current_device(self) -> int:
            return 0

        def current_device_name(self) -> str:
            return "cuda:0"

        def device_count(self) -> int:
            return 1

        def is_synchronized_device(self) -> bool:
            return False

        def on_accelerator(self, tensor: torch.Tensor) -> bool:
            return bool(tensor.is_cuda)

        def Stream(self, *_: Any, **__: Any) -> "_Stream":
            return _Stream(wait)

        def current_stream(self, device_index: int | None = None) -> "_Stream":
            return _Stream(wait)

        def synchronize(self, device_index: int | None = None) -> None:
            wait()

    return FakeAccelerator()


class _Stream:
    """A queue of a device on which nothing takes time: one that waits for another costs the host nothing."""

    def __init__(self, wait: Callable[..., Any]) -> None:
        self.synchronize = wait  # which the host does

    def wait_stream(self, other: "_Stream") -> None:
        """Begin what comes after what ``other`` has been given."""

    def wait_event(self, event: "_Event") -> None:
        """Begin what comes after ``event``."""


class _Event(_Stream):
    """A moment of such a queue, which has always passed."""

    def record(self, stream: _Stream | None = None) -> None:
        """Mark the moment."""

    def wait(self, stream: _Stream | None = None) -> None:
        """Let ``stream`` wait for it."""

    def query(self) -> bool:
        """Whether it has passed."""
        return True


def streams(wait: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """`torch.cuda`'s streams and events; ``wait`` is called where the host waits for one."""
    return {
        "Stream": lambda *_, **__: _Stream(wait),
        "Event": lambda *_, **__: _Event(wait),
        "current_stream": lambda *_: _Stream(wait),
        "default_stream": lambda *_: _Stream(wait),
        "stream": lambda stream: contextlib.nullcontext(stream),
    }


@contextlib.contextmanager
def launches(launch: Launch) -> Iterator[None]:
    """Pass every launch of a Triton kernel to ``launch`` instead of running it, by name and named arguments."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        parameters = inspect.signature(kernel.fn).parameters
        options = {name: value for name, value in kwargs.items() if name in parameters}
        bound = inspect.signature(kernel.fn).bind_partial(*args, **options)
        bound.apply_defaults()
        launch(kernel.fn.__name__, dict(bound.arguments))

    with patch.object(JITFunction, "run", run), patch.object(InterpretedFunction, "run", run):
        yield
