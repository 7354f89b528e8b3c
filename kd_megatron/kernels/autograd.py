"""A loss whose gradients are made together with it: the backward pass only multiplies them by one number.

What a loss is made of (score differences, relations) serves both: making them later would mean making that again.

Shapes: B batch, L length, H heads, d head size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gradients = Sequence[Tensor | None]  # of the student's taps, [B, L, H, d]; None: not wanted
Compute = Callable[..., tuple[Tensor, Gradients]]  # takes what a backend takes, and which gradients are wanted


def differentiable(compute: Compute) -> Callable[..., Tensor]:
    """A decorator: the backend that ``compute`` makes, which is told for which of the student's taps to make gradients.

    The backend takes what ``compute`` takes, the student's taps first and without its last argument, and returns the
    loss.
    """

    @functools.wraps(compute)
    def loss(student: Sequence[Tensor], *arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():  # the Function cannot tell: gradients are always off in its forward
            student = [tap.detach() for tap in student]
        result: Tensor = _GradientInForward.apply(compute, arguments, *student)
        return result

    return loss


def new_gradients(student: Sequence[Tensor], wanted: Sequence[bool], dtype: torch.dtype) -> Gradients:
    """Contiguous and not initialised, in the wide dtype: the backward rounds to that of the tap, once."""
    return [tap.new_empty(tap.shape, dtype=dtype) if want else None for tap, want in zip(student, wanted, strict=True)]


def scaled(gradients: Gradients, factor: Tensor, dtypes: Sequence[torch.dtype | None]) -> Gradients:
    """``gradients`` times ``factor``: multiplied in the wide dtype and rounded to ``dtypes`` on the way into memory."""
    return [
        None if gradient is None else torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
        for gradient, dtype in zip(gradients, dtypes, strict=True)
    ]


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, arguments: Sequence[Any], *student: Tensor) -> Tensor:
        loss, gradients = compute(student, *arguments, ctx.needs_input_grad[2:])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tap.dtype for tap in student]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *scaled(ctx.saved_tensors, factor, ctx.dtypes)
