"""What the doors of all kernels share: choosing a backend, and refusing arguments that cannot be right.

A door raises `ValueError` or `TypeError` naming the argument, what was given and what is allowed. A recipe never gets
this far with a mistake: the objectives check shapes when they are built.

Shapes: B batch, L length, H attention heads, d head size, D = H * d.
"""

import dataclasses
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from kd_megatron.errors import nearest

Function = TypeVar("Function", bound=Callable[..., Any])

AUTO = "auto"


def check_backend(backend: str, backends: Mapping[str, Any]) -> str:
    """``backend`` itself when it is ``"auto"`` or in ``backends``; otherwise `ValueError` naming the nearest."""
    names = [AUTO, *backends]
    if backend not in names:
        raise ValueError(f"unknown backend {backend!r}; {nearest(backend, names)}")
    return backend


def choose_backend(backend: str, backends: Mapping[str, Function], auto: str) -> Function:
    """The function named ``backend``, where ``"auto"`` stands for ``auto``."""
    name = check_backend(backend, backends)
    return backends[auto if name == AUTO else name]


def triton_runs(tensor: Tensor) -> bool:
    """Whether a Triton kernel can take ``tensor``: it is on a GPU and triton is installed."""
    return tensor.is_cuda and importlib.util.find_spec("triton") is not None


def triton_backend(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``module``, which imports triton: loaded when it is first called.

    It refuses CPU tensors, unless ``TRITON_INTERPRET=1`` was set before the start, as the tests do.
    """

    def compute(*arguments: Any) -> Any:
        if importlib.util.find_spec("triton") is None:
            raise ValueError("backend 'triton' needs the package triton, which is not installed; allowed: 'auto'")
        device = _first_tensor(arguments).device
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"backend 'triton' needs tensors on a GPU, not on {device}; allowed: 'auto'")
        return getattr(importlib.import_module(module), name)(*arguments)

    return compute


def _first_tensor(arguments: Any) -> Tensor:
    while not isinstance(arguments, Tensor):
        is_record = dataclasses.is_dataclass(arguments)
        arguments = getattr(arguments, dataclasses.fields(arguments)[0].name) if is_record else arguments[0]
    return arguments


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision a kernel asks for.

    Under autocast a float32 product is silently done in bfloat16; a kernel chooses its own precision.
    """
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def shared_divisors(*widths: int) -> list[int]:
    """All numbers of heads that every one of ``widths`` can be split into, ascending."""
    common = math.gcd(*widths)
    return [n for n in range(1, common + 1) if common % n == 0]


def check_taps(taps: Mapping[str, Tensor]) -> None:
    """Refuse taps that are not floating [B, L, H, d] tensors of one B, one L and one device."""
    first_name, first = next(iter(taps.items()))
    for name, tap in taps.items():
        check_floating(name, tap, num_dimensions=4, shape="[B, L, H, d]")
        check_same_place(name, tap, first_name, first)
        if tap.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{name} has batch and length {tuple(tap.shape[:2])}; "
                f"allowed: {tuple(first.shape[:2])}, as {first_name}"
            )


def named_taps(name: str, taps: Sequence[Tensor], most: int) -> dict[str, Tensor]:
    """``taps`` under the names that messages use, ``name[0]`` and so on; refuses what is not 1 to ``most`` tensors."""
    if not isinstance(taps, Sequence):
        raise TypeError(f"{name} is a {type(taps).__name__}; allowed: a sequence of 1 to {most} tensors")
    if not 1 <= len(taps) <= most:
        raise ValueError(f"{name} has {len(taps)} tensors; allowed: 1 to {most}")
    named = {f"{name}[{index}]": tap for index, tap in enumerate(taps)}
    for tap_name, tap in named.items():
        if not isinstance(tap, Tensor):
            raise TypeError(f"{tap_name} is a {type(tap).__name__}; allowed: a tensor")
    return named


def check_one_shape(taps: Mapping[str, Tensor]) -> None:
    """Refuse taps that differ in shape."""
    first_name, first = next(iter(taps.items()))
    for name, tap in taps.items():
        if tap.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(tap.shape)}; allowed: {tuple(first.shape)}, as {first_name}")


def check_alike(taps: Mapping[str, Tensor]) -> None:
    """Refuse taps of one model that differ in shape or dtype."""
    check_one_shape(taps)
    first_name, first = next(iter(taps.items()))
    for name, tap in taps.items():
        if tap.dtype != first.dtype:
            raise TypeError(f"{name} is {tap.dtype}; allowed: {first.dtype}, as {first_name}")


def check_floating(name: str, tensor: Tensor, num_dimensions: int, shape: str) -> None:
    """Refuse a tensor that is not floating point or has another number of dimensions than ``shape``."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} is {tensor.dtype}; allowed: a floating-point dtype")
    if tensor.ndim != num_dimensions:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed: {shape}")


def check_same_place(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors on two devices."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}; allowed: {other.device}, as {other_name}")


def check_frozen(teacher: Mapping[str, Tensor]) -> None:
    """Refuse a teacher that would be given a gradient."""
    for name, tensor in teacher.items():
        if tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient; allowed: a tensor without, as the teacher is frozen "
                "(run it under torch.inference_mode or detach its outputs)"
            )


def check_mask(name: str, mask: Tensor | None, like_name: str, like: Tensor, num_dimensions: int) -> None:
    """Refuse a mask that is not boolean with the first ``num_dimensions`` sizes, and the device, of ``like``."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}; allowed: torch.bool (True at what counts)")
    if mask.shape != like.shape[:num_dimensions]:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}; allowed: {tuple(like.shape[:num_dimensions])}, as {like_name}"
        )
    check_same_place(name, mask, like_name, like)


def check_heads(name: str, num_heads: int, taps: Mapping[str, Tensor]) -> None:
    """Refuse a number of heads that does not divide the width H * d of every tap."""
    widths = {tap_name: tap.shape[2] * tap.shape[3] for tap_name, tap in taps.items()}
    if num_heads < 1 or any(width % num_heads for width in widths.values()):
        given = ", ".join(f"{tap_name} has width {width}" for tap_name, width in widths.items())
        raise ValueError(f"{name} is {num_heads} but {given}; allowed: {shared_divisors(*widths.values())}")
