"""`score_mse` on a GPU by its direct kernel: loss and gradients from two launches. See triton_kernels.py.

Shapes: B batch, L length, H heads, d head size, D = H * d.
"""

import torch
import triton
from torch import Tensor

from kd_megatron.kernels.arithmetic import Pair, accumulation_dtype
from kd_megatron.kernels.autograd import Gradients, differentiable, new_gradients
from kd_megatron.kernels.cost import LaunchCost
from kd_megatron.kernels.score_mse.triton_kernels import score_tiles
from kd_megatron.kernels.triton_tools import Blocks, as_rows, launch_options, needs_upcast, padded

# By the bytes of the wider model's padded head, and the first entry that holds it: the rows and, for every stage, the
# columns must fit into shared memory, tile and gradient into registers. Heads of 16, 64, 128 and 256 features do not
# spill on sm_80 and sm_90.
BLOCKS = {  # of bfloat16 and float16: matrix instructions
    128: Blocks(128, 64, 8, 2),
    256: Blocks(64, 64, 8, 2),
    512: Blocks(64, 32, 8, 2),
}
FLOAT32_BLOCKS = {  # multiply-adds, which hold their factors in registers
    128: Blocks(64, 64, 8, 2),
    512: Blocks(32, 32, 8, 2),
}
LARGEST_HEADS = Blocks(16, 16, 4, 1)  # beyond the tables


@differentiable
def score_mse(
    student: Pair, teacher: Pair, num_heads: int, valid: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor, Gradients]:
    """Sum of squared differences of the scaled scores before softmax, over valid pairs and heads."""
    dtype = accumulation_dtype(*student, *teacher)
    gradients = new_gradients(student, wanted, dtype)
    student, teacher = _pair(*student, dtype), _pair(*teacher, dtype)
    blocks = default_blocks(student[0], teacher[0], num_heads)
    valid = None if valid is None else valid.contiguous()
    batch, length, _ = student[0].shape
    losses = student[0].new_empty(batch, num_heads * triton.cdiv(length, blocks.rows), dtype=dtype)
    with torch.cuda.device_of(student[0]):  # a launch goes to the current device, wherever its tensors are
        _launch(student, teacher, num_heads, valid, losses, gradients[0], blocks, with_loss=True)
        if gradients[1] is not None:
            swapped = student[::-1], teacher[::-1]
            _launch(*swapped, num_heads, valid, losses, gradients[1], blocks, with_loss=False)
    return losses.sum(dtype=torch.float64).to(dtype), gradients


def default_blocks(student: Tensor, teacher: Tensor, num_heads: int) -> Blocks:
    """The blocks for taps [B, L, D] of these widths and dtypes."""
    table = BLOCKS if max(student.element_size(), teacher.element_size()) == 2 else FLOAT32_BLOCKS
    head_bytes = max(padded(tap.shape[-1] // num_heads) * tap.element_size() for tap in (student, teacher))
    return next((blocks for largest, blocks in table.items() if head_bytes <= largest), LARGEST_HEADS)


def tiles_cost(
    batch: int,
    length: int,
    num_heads: int,
    student_width: int,
    teacher_width: int,
    bytes_each: int,
    with_loss: bool,
    with_gradient: bool = True,
) -> LaunchCost:
    """Of one launch, for taps whose numbers have ``bytes_each``: one is for loss and queries, one for keys.

    Products: two scores, and D with the other side for the gradient, which is float32. Per entry one scaling, and two
    for the square where the loss is wanted.
    """
    positions, entries = batch * length, batch * num_heads * length**2
    products = 2.0 * positions * length * (student_width + teacher_width + student_width * with_gradient)
    return LaunchCost(
        2.0 * bytes_each * positions * (student_width + teacher_width),
        4.0 * positions * student_width * with_gradient,
        products + (1.0 + 2.0 * with_loss) * entries,
    )


def _pair(queries: Tensor, keys: Tensor, accumulated: torch.dtype) -> Pair:
    """Rows and columns of a launch, [B, L, D], of one dtype and equal strides: views where the taps are so already."""
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    if accumulated == torch.float64:
        dtype = accumulated
    queries, keys = as_rows(queries).to(dtype), as_rows(keys).to(dtype)
    if queries.stride() != keys.stride():
        queries, keys = queries.contiguous(), keys.contiguous()
    return queries, keys


def _launch(
    student: Pair,
    teacher: Pair,
    num_heads: int,
    valid: Tensor | None,
    losses: Tensor,
    gradient: Tensor | None,
    blocks: Blocks,
    with_loss: bool,
) -> None:
    """Write the gradient of the rows, the first of ``student``, where wanted, and the loss where asked for."""
    if not losses.numel():
        return
    score_tiles[losses.shape[1], losses.shape[0]](
        *student,
        *teacher,
        valid,
        losses,
        gradient,
        length=student[0].shape[1],
        student_sequence_stride=student[0].stride(0),
        student_row_stride=student[0].stride(1),
        teacher_sequence_stride=teacher[0].stride(0),
        teacher_row_stride=teacher[0].stride(1),
        WITH_LOSS=with_loss,
        **launch_options(student[0], teacher[0], num_heads, blocks, needs_upcast(*student, *teacher)),
    )
