"""Keeps to the student what DeepSpeed would do to the whole process.

ZeRO-3 replaces torch's ``linear`` by a function that keeps no gathered weights for the backward pass, and rounds
otherwise. A teacher beside the student, or a fine-tuning after it, would then depend on the student's stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def linear_confined_to(module: nn.Module) -> Iterator[None]:
    """What replaces ``torch.nn.functional.linear`` within the block, replaces it in the layers of ``module`` alone."""
    own = functional.linear
    try:
        yield
        if functional.linear is not own:
            for layer in _linear_layers(module):
                layer.forward = partial(_forward, functional.linear, layer)  # type: ignore[method-assign]
    finally:
        functional.linear = own


def release(module: nn.Module) -> None:
    """Give the layers of ``module`` torch's ``linear`` back."""
    for layer in _linear_layers(module):
        vars(layer).pop("forward", None)


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _forward(linear: Any, layer: nn.Linear, states: Tensor) -> Tensor:
    result: Tensor = linear(states, layer.weight, layer.bias)
    return result
