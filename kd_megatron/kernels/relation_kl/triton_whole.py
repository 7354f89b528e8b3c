"""`relation_kl` of short sequences in Triton: a program holds all columns of a relation, and makes loss and gradient.

Shapes: B sequences, L length, R relation heads, d head size, D = R * d, n relations; M rows of a part, S the length and
P a head size, each padded to a power of two.

Where all columns of a row are at hand at once, nothing is computed twice: two exponentials and two scores an entry for
loss and gradient. The kernels of triton_kernels.py, which see a row tile by tile, take two and two forward, four and
two backward, and keep four numbers a row in between.
"""

import triton
import triton.language as tl

from kd_megatron.kernels.relation_kl.triton_kernels import head_of_relation, products, sequence_of_all
from kd_megatron.kernels.triton_tools import LOG2_E, LOWEST_SCORE, load_rows, used_positions


@triton.jit
def relation_kl_whole(  # type: ignore[no-untyped-def]
    students,  # n pointers, each to [B, L, D_s] with adjacent features
    teachers,  # n pointers, each to [B, L, D_t] with adjacent features
    valid,  # [B, L] bool, or None: no padding
    divergences,  # [n, B, R], written: the sum of KL over the rows of a head, in bits
    gradients,  # [n, B, L, D_s], written: of the divergences in nats; or None: not wanted
    length,
    num_heads,
    student_sequence_stride,
    student_row_stride,
    teacher_sequence_stride,
    teacher_row_stride,
    STUDENT_SIZE: tl.constexpr,
    TEACHER_SIZE: tl.constexpr,
    STUDENT_PADDED: tl.constexpr,
    TEACHER_PADDED: tl.constexpr,
    ROWS: tl.constexpr,  # M
    COLUMNS: tl.constexpr,  # S, which holds L
    UPCAST: tl.constexpr,
):
    """Grid: (R, B, n). A head's rows come in parts of M, one after the other; each part has all its columns.

    The gradient is ``(G + G^T) X_s / sqrt(d)``, G = P_s - P_t. A part of G gives its own rows ``G X_s``, and every
    row ``G^T X_s``: one program sees all parts, so both are added up in its registers, without atomics.
    """
    accumulated: tl.constexpr = divergences.dtype.element_ty  # float32, or float64 in the interpreter
    # float16 holds nothing below 6e-8: its entries of G, 1 at most, are made 2^14 times as large.
    gain: tl.constexpr = 2.0**14 if students[0].dtype.element_ty == tl.float16 else 1.0
    parts: tl.constexpr = COLUMNS // ROWS
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    student = head_of_relation(students, head, student_sequence_stride, STUDENT_SIZE)
    teacher = head_of_relation(teachers, head, teacher_sequence_stride, TEACHER_SIZE)
    positions = tl.arange(0, COLUMNS)
    used = used_positions(valid, sequence, positions, length)  # [S]
    x_student = load_rows(student, positions, used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
    x_teacher = load_rows(teacher, positions, used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)

    divergence = tl.zeros([], accumulated)
    gradient = tl.zeros([COLUMNS, STUDENT_PADDED], accumulated)
    for part in tl.range(0, parts, num_stages=1):
        rows = part * ROWS + tl.arange(0, ROWS)
        row_used = used_positions(valid, sequence, rows, length)  # [M]
        rows_student = load_rows(student, rows, row_used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
        rows_teacher = load_rows(teacher, rows, row_used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)
        student_scores = scores_below_largest(rows_student, x_student, used, STUDENT_SIZE, accumulated)  # [M, S]
        teacher_scores = scores_below_largest(rows_teacher, x_teacher, used, TEACHER_SIZE, accumulated)
        teacher_weights = tl.exp2(teacher_scores)
        weighted = tl.sum(teacher_weights * (teacher_scores - student_scores), 1)  # [M]
        student_weights = tl.exp2(student_scores)
        student_sum, teacher_sum = tl.sum(student_weights, 1), tl.sum(teacher_weights, 1)
        of_rows = weighted / teacher_sum + (tl.log2(student_sum) - tl.log2(teacher_sum))
        divergence += tl.sum(tl.where(row_used, of_rows, 0.0), 0)  # here: to keep rows for later costs spills
        if gradients is not None:
            student_share = tl.where(row_used, gain / student_sum, 0.0)  # G is 0 in padded rows, as in padded columns
            teacher_share = tl.where(row_used, gain / teacher_sum, 0.0)
            difference = student_weights * student_share[:, None] - teacher_weights * teacher_share[:, None]
            # Matrix instructions take factors of one dtype: G is rounded to that of X. See README.md, precision.
            factor = difference.to(x_student.dtype)
            transposed = tl.trans(factor)
            gradient = tl.dot(transposed, rows_student, gradient, out_dtype=accumulated, input_precision="ieee")
            of_part = tl.dot(factor, x_student, out_dtype=accumulated, input_precision="ieee")  # [M, P]
            in_place = tl.where(tl.arange(0, parts)[:, None, None] == part, of_part[None, :, :], 0.0)
            gradient += tl.reshape(in_place, (COLUMNS, STUDENT_PADDED))

    tl.store(divergences + sequence_of_all() * num_heads + head, divergence)
    if gradients is not None:
        features = tl.arange(0, STUDENT_PADDED)
        places = ((sequence_of_all() * length + positions) * num_heads + head) * STUDENT_SIZE  # [S], in [n, B, L, R, d]
        tl.store(
            gradients + places[:, None] + features[None, :],
            gradient * (STUDENT_SIZE**-0.5 / gain),
            mask=(positions < length)[:, None] & (features < STUDENT_SIZE)[None, :],
        )


@triton.jit
def scores_below_largest(rows, columns, used, SIZE: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores [M, S] of a part in units of log 2, each below the largest of its row; far below it at padded columns."""
    scale: tl.constexpr = LOG2_E * SIZE**-0.5
    # The product with a padded column is 0, so its score is this bias exactly, and multiply and add are one step.
    bias = tl.where(used, 0.0, LOWEST_SCORE)[None, :]
    scores = products(rows, columns, dtype) * scale + bias
    return scores - tl.max(scores, 1)[:, None]
