"""`relation_kl` on a GPU: the two kernels of triton_kernels.py as one differentiable function, and who goes elsewhere.

Short sequences go to triton_whole_launch.py, which computes a third of the exponentials.

Shapes: B sequences, L length, H attention heads, R relation heads, D = H * d, n relations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.relation_kl import triton_whole_launch
from kd_megatron.kernels.relation_kl.triton_kernels import relation_kl_backward, relation_kl_forward
from kd_megatron.kernels.relation_kl.triton_whole_launch import Whole
from kd_megatron.kernels.triton_tools import INTERPRETED, LN_2, Blocks, as_rows, launch_options, needs_upcast


@dataclass(frozen=True)
class Tiling:
    """The blocks of both kernels."""

    forward: Blocks
    backward: Blocks


# Element size in bytes -> the largest head it serves -> tiling. A matrix instruction of sm_90 takes 64 rows for every 4
# warps. What limits the rest is registers: the backward holds two scores and a weight of each entry of its tile, and
# the gradient of its rows. Tiles of 64 rows leave room for two to five programs on a multiprocessor, where 128 rows by
# 8 warps left one (docs/occupancy.md); each reads its columns for half as many rows, which caches serve: 4 bytes an
# entry at d = 64, in which time a multiprocessor makes one exponential, and an entry takes two or four. Up to 256
# features these compile for sm_80, sm_90 and sm_100 without a spill, and compute no exponential twice
# (tests/kernels/test_triton_compiles.py); heads of 512 run. float32 has no exact matrix instruction: its tiles are
# small, and it is for checks, not for speed.
TILINGS = {
    2: {
        64: Tiling(forward=Blocks(64, 64, 4, 2), backward=Blocks(64, 32, 4, 2)),
        128: Tiling(forward=Blocks(64, 32, 4, 2), backward=Blocks(64, 32, 4, 2)),
        256: Tiling(forward=Blocks(64, 32, 4, 2), backward=Blocks(32, 32, 4, 2)),
        512: Tiling(forward=Blocks(16, 32, 4, 1), backward=Blocks(16, 32, 8, 1)),
    },
    4: {
        64: Tiling(forward=Blocks(32, 32, 4, 2), backward=Blocks(32, 32, 4, 2)),
        128: Tiling(forward=Blocks(16, 32, 8, 1), backward=Blocks(16, 32, 8, 1)),
        256: Tiling(forward=Blocks(16, 16, 4, 1), backward=Blocks(16, 16, 4, 1)),
        512: Tiling(forward=Blocks(16, 16, 8, 1), backward=Blocks(16, 16, 8, 1)),
    },
}


def relation_kl(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    num_relation_heads: int,
    valid: Tensor | None,
    tiling: Tiling | Whole | None = None,
) -> Tensor:
    """The divergences of n relations, [n]: backend ``"triton"`` of the door, which describes the arguments.

    All relations share one launch if they share their strides, as the parts of one fused projection do; else each has
    its own. Nothing is copied where the D features of a position are adjacent.

    Args:
        student, teacher: n taps each, [B, L, H, d].
        tiling: for tuning; None: whole relations where there are blocks for them, else that of `TILINGS`.

    Raises:
        ValueError: heads so large that no tiling serves them.
    """
    dtypes = {tap.dtype for tap in (*student, *teacher)}
    if torch.float64 in dtypes and len(dtypes) > 1:
        student, teacher = ([tap.double() for tap in taps] for taps in (student, teacher))
    students, teachers = (tuple(as_rows(tap) for tap in taps) for taps in (student, teacher))
    if any(len({tap.stride() for tap in taps}) > 1 for taps in (students, teachers)):
        pairs = zip(student, teacher, strict=True)
        return torch.cat([relation_kl([s], [t], num_relation_heads, valid, tiling) for s, t in pairs])
    tiling = tiling or chosen(students[0], teachers[0], num_relation_heads)
    valid = None if valid is None else valid.contiguous()
    if isinstance(tiling, Whole):
        return triton_whole_launch.relation_kl_of_short(students, teachers, num_relation_heads, valid, tiling)
    divergences: Tensor = _RelationKL.apply(num_relation_heads, tiling, valid, *students, *teachers)
    return divergences


def chosen(student: Tensor, teacher: Tensor, num_relation_heads: int) -> Tiling | Whole:
    """How two taps [B, L, D] are cut."""
    whole = triton_whole_launch.default_whole(student, teacher, num_relation_heads)
    return whole or default_tiling(student, teacher, num_relation_heads)


def default_tiling(student: Tensor, teacher: Tensor, num_relation_heads: int) -> Tiling:
    """The tiling of `TILINGS` for two taps [B, L, D]."""
    head_size = max(tap.shape[2] // num_relation_heads for tap in (student, teacher))
    by_head_size = TILINGS[2 if max(student.element_size(), teacher.element_size()) == 2 else 4]
    for largest, tiling in by_head_size.items():
        if head_size <= largest:
            return tiling
    raise ValueError(
        f"num_relation_heads is {num_relation_heads}, which makes heads of {head_size} features; "
        f"allowed: heads of at most {max(by_head_size)}, or backend 'chunked'"
    )


class _RelationKL(torch.autograd.Function):
    """Taps [B, L, D] to divergences [n]; keeps the taps, and four numbers for each row of each relation."""

    @staticmethod
    def forward(ctx: Any, num_heads: int, tiling: Tiling, valid: Tensor | None, *taps: Tensor) -> Tensor:
        batch, length, _ = taps[0].shape
        num_relations = len(taps) // 2
        dtype = torch.promote_types(taps[0].dtype, torch.float32)
        programs = num_heads * triton.cdiv(length, tiling.forward.rows)
        statistics = taps[0].new_empty(num_relations, batch, num_heads, 4, length, dtype=dtype)
        divergences = taps[0].new_empty(num_relations, batch, programs, dtype=dtype)
        _launch(relation_kl_forward, tiling.forward, num_heads, taps, (valid, statistics, divergences))
        ctx.num_heads, ctx.blocks = num_heads, tiling.backward
        # Not by save_for_backward, which refuses what was made in inference mode, as a teacher's taps are.
        ctx.valid, ctx.teachers = valid, taps[num_relations:]
        ctx.save_for_backward(statistics, *taps[:num_relations])
        return divergences.sum((1, 2)) * LN_2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        statistics, *students = ctx.saved_tensors
        # The interpreter's conversion to bf16 truncates: there, torch rounds.
        dtype = statistics.dtype if INTERPRETED else students[0].dtype
        gradients = students[0].new_empty(len(students), *students[0].shape, dtype=dtype)
        tensors = (ctx.valid, statistics, incoming.contiguous(), gradients)
        _launch(relation_kl_backward, ctx.blocks, ctx.num_heads, (*students, *ctx.teachers), tensors)
        return None, None, None, *gradients.to(students[0].dtype).unbind(), *[None] * len(students)


def _launch(
    kernel: Any, blocks: Blocks, num_heads: int, taps: Sequence[Tensor], tensors: tuple[Tensor | None, ...]
) -> None:
    num_relations = len(taps) // 2
    student, teacher = taps[0], taps[num_relations]
    batch, length, _ = student.shape
    grid = (num_heads * triton.cdiv(length, blocks.rows), batch, num_relations)
    with torch.cuda.device_of(student):  # Triton launches on the current device
        kernel[grid](
            tuple(taps[:num_relations]),
            tuple(taps[num_relations:]),
            *tensors,
            length,
            num_heads,
            student.stride(0),
            student.stride(1),
            teacher.stride(0),
            teacher.stride(1),
            **launch_options(student, teacher, num_heads, blocks, needs_upcast(student, teacher)),
        )
