"""`hidden_mse` in Triton: the difference is made in registers, in the forward and again in the backward.

Shapes: B sequences, L length, D features; M rows of a tile, P the features padded to a power of two.
"""

import triton
import triton.language as tl

from kd_megatron.kernels.triton_tools import load_rows, used_positions


@triton.jit
def hidden_mse_forward(  # type: ignore[no-untyped-def]
    student,  # [B, L, D] with adjacent features
    teacher,  # [B, L, D] with adjacent features
    valid,  # [B, L] bool, or None: no padding
    losses,  # [B, row blocks], written: the sum over the rows of a program
    length,
    student_sequence_stride,
    student_row_stride,
    teacher_sequence_stride,
    teacher_row_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid: (row blocks, B). The squares of M positions, added up; no atomics, so a sum is the same every time."""
    accumulated: tl.constexpr = losses.dtype.element_ty  # float32, or float64
    difference, _, _ = difference_of_rows(
        student,
        teacher,
        valid,
        length,
        student_sequence_stride,
        student_row_stride,
        teacher_sequence_stride,
        teacher_row_stride,
        SIZE,
        PADDED,
        ROWS,
        accumulated,
    )
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(losses + program, tl.sum(tl.sum(difference * difference, 1), 0))


@triton.jit
def hidden_mse_backward(  # type: ignore[no-untyped-def]
    student,  # as in the forward
    teacher,
    valid,
    incoming,  # a scalar, in the dtype of the sum: the derivative of the caller's loss with respect to this one
    gradient,  # [B, L, D] contiguous, written
    length,
    student_sequence_stride,
    student_row_stride,
    teacher_sequence_stride,
    teacher_row_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid: (row blocks, B). ``2 (student - teacher)`` times the incoming derivative, rounded once; 0 at padding."""
    accumulated: tl.constexpr = incoming.dtype.element_ty
    difference, rows, sequence = difference_of_rows(
        student,
        teacher,
        valid,
        length,
        student_sequence_stride,
        student_row_stride,
        teacher_sequence_stride,
        teacher_row_stride,
        SIZE,
        PADDED,
        ROWS,
        accumulated,
    )
    values = difference * (2.0 * tl.load(incoming))
    features = tl.arange(0, PADDED)
    places = gradient + (sequence * length + rows)[:, None] * SIZE + features[None, :]
    within = (rows < length)[:, None] & (features[None, :] < SIZE)
    tl.store(places, values.to(gradient.dtype.element_ty), mask=within)


@triton.jit
def difference_of_rows(  # type: ignore[no-untyped-def]
    student,
    teacher,
    valid,
    length,
    student_sequence_stride,
    student_row_stride,
    teacher_sequence_stride,
    teacher_row_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    dtype: tl.constexpr,
):
    """(student - teacher of this program's rows [M, P], those rows, their sequence). 0 where nothing is or counts."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sequence = tl.program_id(1).to(tl.int64)
    used = used_positions(valid, sequence, rows, length)
    student += sequence * student_sequence_stride
    teacher += sequence * teacher_sequence_stride
    student_states = load_rows(student, rows, used, student_row_stride, SIZE, PADDED, False).to(dtype)
    teacher_states = load_rows(teacher, rows, used, teacher_row_stride, SIZE, PADDED, False).to(dtype)
    return student_states - teacher_states, rows, sequence
