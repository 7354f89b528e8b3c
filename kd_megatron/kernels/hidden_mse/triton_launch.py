"""`hidden_mse` on a GPU: the two kernels of triton_kernels.py as one differentiable function.

Shapes: B batch, L length, D features.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.kernels.hidden_mse.triton_kernels import hidden_mse_backward, hidden_mse_forward
from kd_megatron.kernels.triton_tools import INTERPRETED

# Numbers of a program: 32 of each model a thread, all of them asked for at once. More would leave fewer programs on a
# multiprocessor, and a kernel that only reads and writes is as fast as the bytes that are under way.
TILE_ELEMENTS = 4096
NUM_WARPS = 4


def hidden_mse(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """The sum, a scalar: backend ``"triton"`` of the door, which describes the arguments."""
    student, teacher = _adjacent(student), _adjacent(teacher)
    loss: Tensor = _HiddenMse.apply(student, teacher, None if valid is None else valid.contiguous())
    return loss


def rows_of_a_program(width: int) -> int:
    """A power of two: as many positions as `TILE_ELEMENTS` holds, and at least one."""
    return int(max(1, TILE_ELEMENTS // padded_width(width)))


def padded_width(width: int) -> int:
    """The smallest power of two that holds ``width``: what a tile of registers has."""
    return int(triton.next_power_of_2(max(1, width)))


def _adjacent(states: Tensor) -> Tensor:
    """[B, L, D] whose features are adjacent in memory: itself where they are."""
    return states if states.stride(2) == 1 else states.contiguous()


class _HiddenMse(torch.autograd.Function):
    """Keeps the two hidden states alone: a difference in float32 would take as many bytes as both do in bfloat16."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        batch, length, width = student.shape
        dtype = accumulation_dtype(student, teacher)
        losses = student.new_empty(batch, triton.cdiv(length, rows_of_a_program(width)), dtype=dtype)
        _launch(hidden_mse_forward, student, teacher, valid, losses)
        # The teacher not by save_for_backward, which refuses what was made in inference mode.
        ctx.teacher, ctx.valid, ctx.dtype = teacher, valid, dtype
        ctx.save_for_backward(student)
        return losses.sum(dtype=torch.float64).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        (student,) = ctx.saved_tensors
        # The interpreter's conversion to bf16 truncates: there, torch rounds.
        dtype = ctx.dtype if INTERPRETED else student.dtype
        gradient = student.new_empty(student.shape, dtype=dtype)
        _launch(hidden_mse_backward, student, ctx.teacher, ctx.valid, incoming, gradient)
        return gradient.to(student.dtype), None, None


def _launch(kernel: Any, student: Tensor, teacher: Tensor, valid: Tensor | None, *tensors: Tensor) -> None:
    batch, length, width = student.shape
    if not student.numel():
        tensors[-1].zero_()  # what the kernel would have written
        return
    rows = rows_of_a_program(width)
    with torch.cuda.device_of(student):  # Triton launches on the current device
        kernel[triton.cdiv(length, rows), batch](
            student,
            teacher,
            valid,
            *tensors,
            length,
            student.stride(0),
            student.stride(1),
            teacher.stride(0),
            teacher.stride(1),
            SIZE=width,
            PADDED=padded_width(width),
            ROWS=rows,
            num_warps=NUM_WARPS,
            num_stages=1,
            enable_fp_fusion=True,  # said outright: Triton 3.10 turns the default round
        )
