"""A loss whose gradients are made together with it: the backward pass only multiplies them by one number.

The score difference D serves both, so making them later would mean making D again.

Shapes: B batch, L length, H heads, d head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.arithmetic import Pair

Gradients = tuple[Tensor | None, Tensor | None]  # of the student's queries and keys, [B, L, H, d]; None: not wanted
Compute = Callable[..., tuple[Tensor, Gradients]]  # takes what a backend takes, and which gradients are wanted


def differentiable(compute: Compute) -> Callable[..., Tensor]:
    """A decorator: the backend that ``compute`` makes, which is told for which of the student's taps to make gradients.

    The backend takes what ``compute`` takes, without its last argument, and returns the loss.
    """

    @functools.wraps(compute)
    def loss(student: Pair, *arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():  # the Function cannot tell: gradients are always off in its forward
            student = student[0].detach(), student[1].detach()
        result: Tensor = _GradientInForward.apply(compute, *student, *arguments)
        return result

    return loss


def new_gradients(student: Pair, wanted: tuple[bool, bool], dtype: torch.dtype) -> Gradients:
    """Contiguous and not initialised, in the wide dtype: the backward rounds to that of the tap, once."""
    queries, keys = (
        tap.new_empty(tap.shape, dtype=dtype) if want else None for tap, want in zip(student, wanted, strict=True)
    )
    return queries, keys


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, queries: Tensor, keys: Tensor, *arguments: Any) -> Tensor:
        loss, gradients = compute((queries, keys), *arguments, ctx.needs_input_grad[1:3])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [queries.dtype, keys.dtype]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys = (
            # Multiplied in the wide dtype and rounded on the way into memory.
            None if gradient is None else torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, queries, keys, None, None, None
