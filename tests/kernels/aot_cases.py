"""What aot_compile.py compiles: calls of the launch functions, with the shapes and dtypes that training has.

Shapes: B batch, L length, R heads, d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH, LENGTH, NUM_HEADS = 2, 512, 12  # the batch and the number of heads do not change what is compiled
CHUNK_ROWS, VOCAB_SIZE, ROW_SIZE = 128, 30522, 30528  # rows, tokens, and elements from a row of logits to the next
CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    """A call that launches kernels; ``matrix_instructions``: its dtype has some that are exact."""

    call: Callable[[], None]
    matrix_instructions: bool
    spills: bool = False  # shows that a spill would be seen
    exponentials: tuple[int, int] | None = None  # of an entry of the tile, and of a row; None: those of its kernels


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


def vocabulary(
    loss: str,
    student: torch.dtype = torch.float32,
    gradient: torch.dtype | None = torch.bfloat16,
    temperature: float = 2.0,
    num_kept: int = 0,
    tile_of_both: int | None = None,
) -> Case:
    """A chunk's losses and gradient; ``gradient`` None: losses alone; ``tile_of_both``: another than that shipped."""

    def call() -> None:
        from kd_megatron.kernels.vocab_kl import triton_launch
        from kd_megatron.kernels.vocab_kl.block import Targets, TopRows

        def rows(dtype: torch.dtype) -> Tensor:
            return torch.empty(CHUNK_ROWS, ROW_SIZE, dtype=dtype)[:, :VOCAB_SIZE]

        weights = torch.empty(CHUNK_ROWS, 1, dtype=student)
        targets = Targets(torch.empty(CHUNK_ROWS, 1, dtype=torch.int64), weights, weights.clone())
        losses = torch.empty(2, CHUNK_ROWS, dtype=student)
        bias = torch.empty(ROW_SIZE, dtype=torch.bfloat16)
        written = None if gradient is None else rows(gradient)
        shipped = triton_launch.TILE_OF_BOTH
        triton_launch.TILE_OF_BOTH = tile_of_both or shipped
        if loss == "cross_entropy":
            triton_launch.launch_cross_entropy(rows(student), bias, targets, losses, written)
        elif loss == "divergence":
            sides = (rows(student), bias, rows(student), bias.clone())
            triton_launch.launch_divergence(sides, targets, temperature, losses, written)
        else:
            known = TopRows(
                torch.empty(CHUNK_ROWS, num_kept, dtype=torch.int64),
                torch.empty(CHUNK_ROWS, num_kept + 1, dtype=student),
            )
            triton_launch.launch_top(rows(student), bias, known, targets, temperature, losses, written)
        triton_launch.TILE_OF_BOTH = shipped

    # Of each model, and of the student's at the temperature; float64 has no instruction for them.
    of_an_entry = 1 + (loss == "divergence") + (loss != "cross_entropy" and temperature != 1.0)
    of_a_row = 3 if loss == "top" else 1  # the rescaling of sums; of a row's known tokens, up to 2 in a thread
    exponentials = (of_an_entry * (1 if gradient is None else 2), of_a_row) if student != torch.float64 else (0, 0)
    return Case(call, matrix_instructions=False, spills=tile_of_both is not None, exponentials=exponentials)


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
    "vocab_cross_entropy bfloat16": vocabulary("cross_entropy"),
    "vocab_cross_entropy losses alone": vocabulary("cross_entropy", gradient=None),
    "vocab_cross_entropy float32": vocabulary("cross_entropy", gradient=torch.float32),
    "vocab_kl bfloat16": vocabulary("divergence"),
    "vocab_kl bfloat16 T1": vocabulary("divergence", temperature=1.0),
    "vocab_kl losses alone": vocabulary("divergence", gradient=None),
    "vocab_kl float32": vocabulary("divergence", gradient=torch.float32),
    "vocab_kl bfloat16 too large": vocabulary("divergence", tile_of_both=16384),
    "vocab_topk_kl bfloat16 k64": vocabulary("top", num_kept=64),
    "vocab_topk_kl bfloat16 T1 k8": vocabulary("top", temperature=1.0, num_kept=8),
    "vocab_topk_kl bfloat16 k1000": vocabulary("top", num_kept=1000),
    "vocab_kl float64": vocabulary("divergence", student=torch.float64, gradient=torch.float64),
    "vocab_topk_kl float64 k64": vocabulary("top", student=torch.float64, gradient=torch.float64, num_kept=64),
}
