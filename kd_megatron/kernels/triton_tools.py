"""What the Triton kernels share.

Shapes: M rows of a block, d size of a head, P that size padded to a power of two of at least 16.
"""

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from kd_megatron.kernels import triton_interpreter

    triton_interpreter.mend()
LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware's exponential is 2^x: scores are scaled by log2(e) once
LN_2 = 0.6931471805599453
LOWEST_SCORE = tl.constexpr(-1.0e30)  # finite, so that the difference of two is 0 and not NaN


class Blocks(NamedTuple):
    """How a kernel cuts scores of L x L: programs of ``rows``, which stream over the columns ``columns`` at a time."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int  # loads in flight: 1 waits for each tile's


@triton.jit
def used_positions(valid, sequence, positions, length):  # type: ignore[no-untyped-def]
    """Which ``positions`` are in ``sequence`` of ``valid`` [B, L] (None: no padding), and not padding."""
    used = positions < length
    if valid is not None:
        used = tl.load(valid + sequence * length + positions, mask=used, other=0)
    return used


@triton.jit
def load_rows(base, rows, used, row_stride, SIZE: tl.constexpr, PADDED: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of one head, [M, P], zero where ``used`` [M] is False: what stands there, NaN too, is never read."""
    features = tl.arange(0, PADDED)
    places = base + rows[:, None].to(tl.int64) * row_stride + features[None, :]
    values = tl.load(places, mask=used[:, None] & (features[None, :] < SIZE), other=0.0)
    if UPCAST:
        values = values.to(tl.float32)
    return values


def padded(size: int) -> int:
    """The smallest power of two, at least 16, that holds ``size``: what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(size))


def needs_upcast(*tensors: Tensor) -> bool:
    """Whether tiles are widened after loading: the interpreter's ``tl.dot`` takes the bits of bf16 for integers."""
    return INTERPRETED and any(tensor.dtype == torch.bfloat16 for tensor in tensors)


def launch_options(student: Tensor, teacher: Tensor, num_heads: int, blocks: Blocks, upcast: bool) -> dict[str, Any]:
    """What every kernel is told of the heads of taps [B, L, D] and of how it is cut."""
    student_size, teacher_size = student.shape[2] // num_heads, teacher.shape[2] // num_heads
    return {
        "STUDENT_SIZE": student_size,
        "TEACHER_SIZE": teacher_size,
        "STUDENT_PADDED": padded(student_size),
        "TEACHER_PADDED": padded(teacher_size),
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "UPCAST": upcast,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
        "enable_fp_fusion": True,  # said outright: Triton 3.10 turns the default round
    }


def as_rows(tap: Tensor) -> Tensor:
    """A projection [B, L, H, d] as [B, L, D] rows: a view, also of a fused projection, where features are adjacent."""
    rows = tap.flatten(2)
    return rows if rows.stride(2) == 1 else rows.contiguous()
