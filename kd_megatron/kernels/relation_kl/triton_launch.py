"""`relation_kl` on a GPU: two Triton kernels as one differentiable function. See triton_kernels.py and README.md.

Shapes: B sequences, L length, R relation heads, D = H * d, n relations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.relation_kl.triton_kernels import relation_kl_backward, relation_kl_forward
from kd_megatron.kernels.triton_tools import INTERPRETED, LN_2, as_rows, needs_upcast, padded


@dataclass(frozen=True)
class Blocks:
    """How one kernel cuts a relation into tiles of ``rows`` x ``columns``, and runs each."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiling:
    """The blocks of both kernels."""

    forward: Blocks
    backward: Blocks


# By the bytes of the wider model's padded head: what must fit is the rows and, of both stages, the columns in shared
# memory, and a tile of both scores beside the gradient in registers.
TILINGS = {
    128: Tiling(forward=Blocks(128, 64, 8, 2), backward=Blocks(128, 64, 8, 2)),
    256: Tiling(forward=Blocks(64, 64, 4, 2), backward=Blocks(64, 32, 4, 2)),
    512: Tiling(forward=Blocks(64, 32, 8, 2), backward=Blocks(32, 32, 4, 1)),
}


def relation_kl(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    num_relation_heads: int,
    valid: Tensor | None,
    tiling: Tiling | None = None,
) -> Tensor:
    """The divergences of n relations, [n]: the backend ``"triton"`` of the door, which says what the arguments are.

    One launch for all relations, and none copied, where their features are adjacent and their strides agree, as those
    of one fused projection do. ``tiling`` is for tuning; None: what `TILINGS` holds for these head sizes.
    """
    dtype = torch.float64 if torch.float64 in {tap.dtype for tap in (*student, *teacher)} else None
    students = [as_rows(tap.to(dtype or tap.dtype)) for tap in student]
    teachers = [as_rows(tap.to(dtype or tap.dtype)) for tap in teacher]
    if len({tap.stride() for tap in students}) > 1 or len({tap.stride() for tap in teachers}) > 1:
        pairs = zip(student, teacher, strict=True)
        return torch.cat([relation_kl([s], [t], num_relation_heads, valid, tiling) for s, t in pairs])
    launch = _Launch(num_relation_heads, tiling or default_tiling(students[0], teachers[0], num_relation_heads))
    result: Tensor = _RelationKL.apply(launch, None if valid is None else valid.contiguous(), *students, *teachers)
    return result


def default_tiling(student: Tensor, teacher: Tensor, num_relation_heads: int) -> Tiling:
    """The tiling for taps [B, L, D] of these widths and dtypes."""
    head_bytes = max(padded(tap.shape[-1] // num_relation_heads) * tap.element_size() for tap in (student, teacher))
    fitting = [tiling for largest, tiling in TILINGS.items() if head_bytes <= largest]
    if not fitting:
        raise ValueError()
    return fitting[0]


@dataclass(frozen=True)
class _Launch:
    """What both kernels are launched with beside tensors."""

    num_relation_heads: int
    tiling: Tiling

    def grid(self, student: Tensor, num_relations: int, blocks: Blocks) -> tuple[int, int, int]:
        batch, length, _ = student.shape
        return self.num_relation_heads * triton.cdiv(length, blocks.rows), batch, num_relations

    def scalars(self, student: Tensor, teacher: Tensor, blocks: Blocks) -> dict[str, Any]:
        student_size, teacher_size = (tap.shape[-1] // self.num_relation_heads for tap in (student, teacher))
        return {
            "length": student.shape[1],
            "num_heads": self.num_relation_heads,
            "student_sequence_stride": student.stride(0),
            "student_row_stride": student.stride(1),
            "teacher_sequence_stride": teacher.stride(0),
            "teacher_row_stride": teacher.stride(1),
            "STUDENT_SIZE": student_size,
            "TEACHER_SIZE": teacher_size,
            "STUDENT_PADDED": padded(student_size),
            "TEACHER_PADDED": padded(teacher_size),
            "ROWS": blocks.rows,
            "COLUMNS": blocks.columns,
            "UPCAST": needs_upcast(student, teacher),
            "num_warps": blocks.num_warps,
            "num_stages": blocks.num_stages,
            "enable_fp_fusion": True,  # said, as its default is about to change: the kernels count on multiply-add
        }


class _RelationKL(torch.autograd.Function):
    """From taps [B, L, D] of equal strides to divergences [n]. Keeps its inputs and four numbers a row of a relation."""

    @staticmethod
    def forward(ctx: Any, launch: _Launch, valid: Tensor | None, *taps: Tensor) -> Tensor:
        num_relations = len(taps) // 2
        students, teachers = taps[:num_relations], taps[num_relations:]
        blocks = launch.tiling.forward
        grid = launch.grid(students[0], num_relations, blocks)
        num_heads, (batch, length, _) = launch.num_relation_heads, students[0].shape
        dtype = torch.promote_types(students[0].dtype, torch.float32)
        statistics = students[0].new_empty(num_relations, batch, num_heads, 4, length, dtype=dtype)
        divergences = students[0].new_empty(num_relations, batch, grid[0], dtype=dtype)
        with torch.cuda.device_of(students[0]):
            relation_kl_forward[grid](
                students,
                teachers,
                valid,
                statistics,
                divergences,
                **launch.scalars(students[0], teachers[0], blocks),
            )
        ctx.launch = launch
        ctx.save_for_backward(valid, statistics, *taps)
        return divergences.sum((1, 2)) * LN_2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        valid, statistics, *taps = ctx.saved_tensors
        num_relations = len(taps) // 2
        students, teachers = tuple(taps[:num_relations]), tuple(taps[num_relations:])
        blocks = ctx.launch.tiling.backward
        dtype = (
            statistics.dtype if INTERPRETED else students[0].dtype
        )  # the interpreter truncates to bf16: torch rounds
        gradients = students[0].new_empty(num_relations, *students[0].shape, dtype=dtype)
        with torch.cuda.device_of(students[0]):
            relation_kl_backward[ctx.launch.grid(students[0], num_relations, blocks)](
                students,
                teachers,
                valid,
                statistics,
                incoming.contiguous(),
                gradients,
                **ctx.launch.scalars(students[0], teachers[0], blocks),
            )
        return None, None, *gradients.to(students[0].dtype).unbind(), *[None] * num_relations
