"""`relation_kl` of short sequences on a GPU: the kernel of triton_whole.py as one differentiable function.

Shapes: B sequences, L length, R relation heads, d head size, D = R * d, n relations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels import triton_tools
from kd_megatron.kernels.relation_kl.triton_whole import relation_kl_whole
from kd_megatron.kernels.triton_tools import LN_2, Blocks, launch_options, needs_upcast


class Whole(NamedTuple):
    """How a program works on one relation: ``rows`` at a time, or all where the length is less."""

    rows: int
    num_warps: int
    most_registers: int | None = None  # of a thread; None: what the compiler takes


# The least compute capability -> ((the largest head, the longest sequence) -> blocks): the first that holds both. What
# is not in here goes to the kernels of triton_kernels.py. A thread holds two scores of 64 entries, 128 registers, and
# needs 180 to 250; told of a limit, the compiler finds a way without a spill that it does not find by itself. Two
# programs of 4 warps on a multiprocessor wait for different things at different times, one of 8 waits as a whole.
# Chosen by what compiles without a spill, then by warps on a multiprocessor (docs/occupancy.md): nothing here has been
# timed. Programs of several heads were tried, and hold 255 registers with spills. From 100 on: Triton 3.7, which
# torch 2.13 for CUDA brings, does not compile the kernel ("parent layout must have at least rank >= 2"); 3.9 does.
SHORT = {(64, 64): Whole(64, 4)}
TABLE: dict[int, dict[tuple[int, int], Whole]] = {
    0: SHORT | {(32, 128): Whole(64, 4, 240)},
    90: SHORT | {(32, 128): Whole(64, 4, 240), (64, 128): Whole(128, 8)},
    100: {},
}


def relation_kl_of_short(
    student: Sequence[Tensor], teacher: Sequence[Tensor], num_heads: int, valid: Tensor | None, whole: Whole
) -> Tensor:
    """The divergences of n relations, [n], of taps [B, L, D] with adjacent features; each side has one stride."""
    if not torch.is_grad_enabled():  # the Function cannot tell: gradients are always off in its forward
        student = [tap.detach() for tap in student]
    divergences: Tensor = _WholeRelationKL.apply(num_heads, whole, valid, *student, *teacher)
    return divergences


def default_whole(student: Tensor, teacher: Tensor, num_heads: int) -> Whole | None:
    """The blocks for two taps [B, L, D]; None where they are not for this kernel (float32 among others)."""
    if max(student.element_size(), teacher.element_size()) > 2:
        return None
    capability, length = triton_tools.capability(student), student.shape[1]
    head_size = max(tap.shape[2] // num_heads for tap in (student, teacher))
    table = TABLE[max(least for least in TABLE if least <= capability)]
    fitting = (whole for (size, longest), whole in table.items() if head_size <= size and length <= longest)
    return next(fitting, None)


class _WholeRelationKL(torch.autograd.Function):
    """Taps [B, L, D] to divergences [n]; keeps their gradient in float32, which the backward multiplies and rounds."""

    @staticmethod
    def forward(ctx: Any, num_heads: int, whole: Whole, valid: Tensor | None, *taps: Tensor) -> Tensor:
        num_relations = len(taps) // 2
        students = taps[:num_relations]
        dtype = torch.promote_types(taps[0].dtype, torch.float32)
        wanted = any(ctx.needs_input_grad)
        divergences = taps[0].new_empty(num_relations, len(taps[0]), num_heads, dtype=dtype)
        gradients = taps[0].new_empty(num_relations, *taps[0].shape, dtype=dtype) if wanted else None
        _launch(students, taps[num_relations:], num_heads, valid, divergences, gradients, whole)
        if gradients is not None:
            ctx.save_for_backward(gradients)
        ctx.dtype = taps[0].dtype
        return divergences.sum((1, 2)) * LN_2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        rounded = torch.empty_like(gradients, dtype=ctx.dtype)
        torch.mul(gradients, incoming[:, None, None, None], out=rounded)
        return None, None, None, *rounded.unbind(), *[None] * len(gradients)


def _launch(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    num_heads: int,
    valid: Tensor | None,
    divergences: Tensor,
    gradients: Tensor | None,
    whole: Whole,
) -> None:
    student, teacher = students[0], teachers[0]
    batch, length, _ = student.shape
    rows = min(whole.rows, triton_tools.padded(length))
    blocks = Blocks(rows, max(rows, triton_tools.padded(length)), whole.num_warps, num_stages=1)
    options = launch_options(student, teacher, num_heads, blocks, needs_upcast(student, teacher))
    if whole.most_registers is not None:
        options["maxnreg"] = whole.most_registers
    with torch.cuda.device_of(student):  # Triton launches on the current device
        relation_kl_whole[num_heads, batch, len(students)](
            tuple(students),
            tuple(teachers),
            valid,
            divergences,
            gradients,
            length,
            num_heads,
            student.stride(0),
            student.stride(1),
            teacher.stride(0),
            teacher.stride(1),
            **options,
        )
