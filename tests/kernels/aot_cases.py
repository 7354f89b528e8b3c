"""What aot_compile.py compiles: calls of the launch functions, with the shapes and dtypes that training has.

Shapes: B batch, L length, R heads, d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH, LENGTH, NUM_HEADS = 2, 512, 12  # the batch and the number of heads do not change what is compiled
CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    """A call that launches kernels; ``matrix_instructions``: its dtype has some that are exact."""

    call: Callable[[], None]
    matrix_instructions: bool
    spills: bool = False  # shows that a spill would be seen


def fused_views(head_size: int, dtype: torch.dtype, requires_grad: bool, length: int = LENGTH) -> tuple[Tensor, ...]:
    """Queries, keys and values, [B, L, R, d], views of one projection."""
    fused = torch.empty(BATCH, length, 3, NUM_HEADS, head_size, dtype=dtype, requires_grad=requires_grad)
    return fused.unbind(2)


def mask(padding: bool, length: int = LENGTH) -> Tensor | None:
    return torch.empty(BATCH, length, dtype=torch.bool) if padding else None


def relation_kl(
    student_size: int,
    teacher_size: int,
    dtype: torch.dtype,
    padding: bool = False,
    length: int = LENGTH,
    backward: tuple[int, int, int, int] | None = None,
) -> Case:
    """Forward and backward of three relations; ``backward``: other blocks than those shipped."""

    def call() -> None:
        from kd_megatron.kernels.relation_kl import triton_launch

        student, teacher = (
            fused_views(size, dtype, trained, length) for size, trained in ((student_size, True), (teacher_size, False))
        )
        tiling = None
        if backward:
            shipped = triton_launch.default_tiling(student[0].flatten(2), teacher[0].flatten(2), NUM_HEADS)
            tiling = triton_launch.Tiling(shipped.forward, triton_launch.Blocks(*backward))
        triton_launch.relation_kl(student, teacher, NUM_HEADS, mask(padding, length), tiling).sum().backward()

    return Case(call, matrix_instructions=dtype != torch.float32, spills=backward is not None)


def score_mse(student_size: int, teacher_size: int, dtype: torch.dtype, padding: bool = False) -> Case:
    """Loss and both gradients."""

    def call() -> None:
        from kd_megatron.kernels.score_mse import triton_launch

        student, teacher = fused_views(student_size, dtype, True), fused_views(teacher_size, dtype, False)
        triton_launch.score_mse(tuple(student[:2]), tuple(teacher[:2]), NUM_HEADS, mask(padding))

    return Case(call, matrix_instructions=dtype != torch.float32)


def hidden_mse(width: int, student: torch.dtype, teacher: torch.dtype, padding: bool = False) -> Case:
    """Loss and gradient of one layer."""

    def call() -> None:
        from kd_megatron.kernels.hidden_mse import triton_launch

        states = torch.empty(BATCH, LENGTH, width, dtype=student, requires_grad=True)
        triton_launch.hidden_mse(states, states.detach().to(teacher), mask(padding)).backward()

    return Case(call, matrix_instructions=False)


CASES = {
    "relation_kl 64/64 bfloat16": relation_kl(64, 64, torch.bfloat16),
    "relation_kl 16/16 bfloat16": relation_kl(16, 16, torch.bfloat16),
    "relation_kl 26/64 float16 padding": relation_kl(26, 64, torch.float16, padding=True),
    "relation_kl 64/64 float32 padding": relation_kl(64, 64, torch.float32, padding=True),
    "relation_kl 128/256 bfloat16 padding": relation_kl(128, 256, torch.bfloat16, padding=True),
    "relation_kl 128/128 bfloat16": relation_kl(128, 128, torch.bfloat16),
    "relation_kl 16/16 bfloat16 L128": relation_kl(16, 16, torch.bfloat16, length=128),
    "relation_kl 8/16 bfloat16 L100 padding": relation_kl(8, 16, torch.bfloat16, padding=True, length=100),
    "relation_kl 26/32 float16 L128 padding": relation_kl(26, 32, torch.float16, padding=True, length=128),
    "relation_kl 32/32 bfloat16 L128": relation_kl(32, 32, torch.bfloat16, length=128),
    "relation_kl 32/64 bfloat16 L128": relation_kl(32, 64, torch.bfloat16, length=128),
    "relation_kl 64/64 bfloat16 L128": relation_kl(64, 64, torch.bfloat16, length=128),
    "relation_kl 64/64 bfloat16 L100 padding": relation_kl(64, 64, torch.bfloat16, padding=True, length=100),
    "relation_kl 16/16 bfloat16 L64": relation_kl(16, 16, torch.bfloat16, length=64),
    "relation_kl 64/64 float16 L50 padding": relation_kl(64, 64, torch.float16, padding=True, length=50),
    "relation_kl 64/64 bfloat16 too large": relation_kl(64, 64, torch.bfloat16, backward=(128, 128, 8, 2)),
    "score_mse 64/64 bfloat16": score_mse(64, 64, torch.bfloat16),
    "score_mse 16/16 bfloat16": score_mse(16, 16, torch.bfloat16),
    "score_mse 128/256 bfloat16 padding": score_mse(128, 256, torch.bfloat16, padding=True),
    "score_mse 26/64 float16 padding": score_mse(26, 64, torch.float16, padding=True),
    "score_mse 64/64 float32 padding": score_mse(64, 64, torch.float32, padding=True),
    "score_mse 26/64 float32 padding": score_mse(26, 64, torch.float32, padding=True),
    "hidden_mse 768 bfloat16": hidden_mse(768, torch.bfloat16, torch.bfloat16),
    "hidden_mse 1024 bfloat16 padding": hidden_mse(1024, torch.bfloat16, torch.bfloat16, padding=True),
    "hidden_mse 768 bfloat16/float32": hidden_mse(768, torch.bfloat16, torch.float32),
}
