"""`relation_kl` in Triton, forward and backward. Of the L x L relations nothing leaves a program's registers.

Shapes: B sequences, L length, R relation heads, d head size, D = R * d, n relations (queries, keys, values);
M rows and N columns of a tile of the relation, P a head size padded to a power of two. Rows and columns both run over
the positions of one sequence: a relation compares a projection X, [L, d], with itself.

One program owns M rows of one relation head and streams over the columns, N at a time. Scores are in units of log 2,
``S = X X^T log2(e) / sqrt(d)``, because the hardware's exponential is 2^x. Of every row the pair (maximum m, log2 of
the sum l) is kept and never added up: where m is large, m + log2 l has no bits left for the second term.

    P[i,j] = 2^((S[i,j] - m[i]) - log2 l[i])        l[i] = sum over j of 2^(S[i,j] - m[i])

Padded positions are never read: they are zeros in registers, which is all the masking that the backward's tiles need.
"""

import triton
import triton.language as tl

from kd_megatron.kernels.triton_tools import LOG2_E, LOWEST_SCORE, load_rows, used_positions


@triton.jit
def relation_kl_forward(  # type: ignore[no-untyped-def]
    students,  # n pointers, each to [B, L, D_s] with adjacent features
    teachers,  # n pointers, each to [B, L, D_t] with adjacent features
    valid,  # [B, L] bool, or None: no padding
    statistics,  # [n, B, R, 4, L], written: m and log2 l of the student, then of the teacher
    divergences,  # [n, B, R * row blocks], written: the sum of KL over the rows of a program, in bits
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: (R * row blocks, B, n). One pass over the columns gives the divergence and the statistics of the rows.

    KL(P_t || P_s) of a row is the mean of log P_t - log P_s under P_t. With both scores taken relative to their own
    maxima, t = T - m_t and s = S - m_s, it is ``sum 2^t (t - s) / l_t - log2 l_t + log2 l_s``: no two large numbers
    are ever subtracted. When a later tile moves the maxima, the sum so far is rescaled and shifted.
    """
    accumulated: tl.constexpr = statistics.dtype.element_ty  # float32, or float64 in the interpreter
    student_scale: tl.constexpr = LOG2_E * STUDENT_SIZE**-0.5
    teacher_scale: tl.constexpr = LOG2_E * TEACHER_SIZE**-0.5
    head, rows = head_and_rows(length, ROWS)
    sequence = tl.program_id(1).to(tl.int64)
    student = head_of_relation(students, head, student_sequence_stride, STUDENT_SIZE)
    teacher = head_of_relation(teachers, head, teacher_sequence_stride, TEACHER_SIZE)
    row_used = used_positions(valid, sequence, rows, length)  # [M]
    student_rows = load_rows(student, rows, row_used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
    teacher_rows = load_rows(teacher, rows, row_used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)

    student_max = tl.full([ROWS], LOWEST_SCORE, accumulated)
    teacher_max = tl.full([ROWS], LOWEST_SCORE, accumulated)
    student_sum = tl.zeros([ROWS], accumulated)
    teacher_sum = tl.zeros([ROWS], accumulated)
    weighted = tl.zeros([ROWS], accumulated)  # sum of 2^t (t - s)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        used = used_positions(valid, sequence, columns, length)  # [N]
        student_columns = load_rows(student, columns, used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
        teacher_columns = load_rows(teacher, columns, used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)
        # The product with a padded column is 0, so its score is this bias exactly, and multiply and add are one step.
        bias = tl.where(used, 0.0, LOWEST_SCORE)[None, :]
        student_scores = products(student_rows, student_columns, accumulated) * student_scale + bias  # [M, N]
        teacher_scores = products(teacher_rows, teacher_columns, accumulated) * teacher_scale + bias

        next_student_max = tl.maximum(student_max, tl.max(student_scores, 1))
        next_teacher_max = tl.maximum(teacher_max, tl.max(teacher_scores, 1))
        student_scores -= next_student_max[:, None]
        teacher_scores -= next_teacher_max[:, None]
        student_move = student_max - next_student_max  # [M], negative where the maximum has moved
        teacher_move = teacher_max - next_teacher_max
        student_decay = tl.exp2(student_move)
        teacher_decay = tl.exp2(teacher_move)
        weights = tl.exp2(teacher_scores)
        weighted = teacher_decay * (weighted + teacher_sum * (teacher_move - student_move))
        weighted += tl.sum(weights * (teacher_scores - student_scores), 1)
        teacher_sum = teacher_decay * teacher_sum + tl.sum(weights, 1)
        student_sum = student_decay * student_sum + tl.sum(tl.exp2(student_scores), 1)
        student_max = next_student_max
        teacher_max = next_teacher_max

    student_log_sum = tl.log2(student_sum)
    teacher_log_sum = tl.log2(teacher_sum)
    divergence = weighted / teacher_sum + (student_log_sum - teacher_log_sum)  # [M]
    program = sequence_of_all() * tl.num_programs(0) + tl.program_id(0)
    tl.store(divergences + program, tl.sum(tl.where(row_used, divergence, 0.0), 0))

    within = rows < length
    places = statistics + (sequence_of_all() * num_heads + head) * 4 * length + rows
    # A padded row has scores of 0, or none at all in an empty sequence: backward counts on a maximum of 0 for both.
    tl.store(places, tl.where(row_used, student_max, 0.0), mask=within)
    tl.store(places + length, student_log_sum, mask=within)
    tl.store(places + 2 * length, tl.where(row_used, teacher_max, 0.0), mask=within)
    tl.store(places + 3 * length, teacher_log_sum, mask=within)


@triton.jit
def relation_kl_backward(  # type: ignore[no-untyped-def]
    students,  # as in the forward
    teachers,
    valid,
    statistics,  # [n, B, R, 4, L], as the forward left them
    incoming,  # [n]: the derivative of the caller's loss with respect to each divergence, in nats
    gradients,  # [n, B, L, D_s], written
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: (R * row blocks, B, n). The gradient of the student's rows: ``(G + G^T) X_s / sqrt(d)``, G = P_s - P_t.

    X stands on both sides of X X^T: score (i, j) pulls on row i, and score (j, i), the same number, pulls on it as a
    column. So entry (i, j) of G + G^T takes one score and the statistics of rows i and j: a program that owns its rows
    writes their gradient whole, without atomics, at four exponentials an entry. (Taking P[j,i] as P[i,j] times the
    ratio of the two normalisers saves two of them, and is silently wrong where scores span more than 87 nats.)
    """
    accumulated: tl.constexpr = statistics.dtype.element_ty
    student_scale: tl.constexpr = LOG2_E * STUDENT_SIZE**-0.5
    teacher_scale: tl.constexpr = LOG2_E * TEACHER_SIZE**-0.5
    # float16 holds nothing below 6e-8. The entries of G + G^T, 2 at most, go into their product with X made 2^14 times
    # as large, which its largest number, 2^16, still holds. The exponents see to that, outside of the tile.
    gain: tl.constexpr = 14 if students[0].dtype.element_ty == tl.float16 else 0
    head, rows = head_and_rows(length, ROWS)
    sequence = tl.program_id(1).to(tl.int64)
    student = head_of_relation(students, head, student_sequence_stride, STUDENT_SIZE)
    teacher = head_of_relation(teachers, head, teacher_sequence_stride, TEACHER_SIZE)
    student_statistics = statistics + (sequence_of_all() * num_heads + head) * 4 * length
    teacher_statistics = student_statistics + 2 * length
    row_used = used_positions(valid, sequence, rows, length)  # [M]
    student_rows = load_rows(student, rows, row_used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
    teacher_rows = load_rows(teacher, rows, row_used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)
    row_max_s, row_log_sum_s = load_statistics(student_statistics, rows, length, gain)  # [M]
    row_max_t, row_log_sum_t = load_statistics(teacher_statistics, rows, length, gain)

    gradient = tl.zeros([ROWS, STUDENT_PADDED], accumulated)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        used = used_positions(valid, sequence, columns, length)  # [N]
        student_columns = load_rows(student, columns, used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST)
        teacher_columns = load_rows(teacher, columns, used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST)
        column_max_s, column_log_sum_s = load_statistics(student_statistics, columns, length, gain)  # [N]
        column_max_t, column_log_sum_t = load_statistics(teacher_statistics, columns, length, gain)
        student_scores = products(student_rows, student_columns, accumulated) * student_scale  # [M, N]
        teacher_scores = products(teacher_rows, teacher_columns, accumulated) * teacher_scale
        # No mask: the score with a padded column is 0, no more than either maximum (S[i,i] >= 0), so its weight is
        # finite, and meets zeros in student_columns.
        weights = tl.exp2((student_scores - row_max_s[:, None]) - row_log_sum_s[:, None])
        weights -= tl.exp2((teacher_scores - row_max_t[:, None]) - row_log_sum_t[:, None])
        weights += tl.exp2((student_scores - column_max_s[None, :]) - column_log_sum_s[None, :])
        weights -= tl.exp2((teacher_scores - column_max_t[None, :]) - column_log_sum_t[None, :])
        # Matrix instructions take factors of one dtype: G + G^T is rounded to that of X. See README.md, precision.
        gradient = tl.dot(
            weights.to(student_columns.dtype), student_columns, gradient, out_dtype=accumulated, input_precision="ieee"
        )

    factor = tl.load(incoming + tl.program_id(2)) * (STUDENT_SIZE**-0.5 * 2.0**-gain)
    gradient = tl.where(row_used[:, None], gradient * factor, 0.0)  # exactly 0 at padding
    features = tl.arange(0, STUDENT_PADDED)
    places = ((sequence_of_all() * length + rows) * num_heads + head) * STUDENT_SIZE  # [M], in [n, B, L, R, d]
    tl.store(
        gradients + places[:, None] + features[None, :],
        gradient.to(gradients.dtype.element_ty),
        mask=(rows < length)[:, None] & (features < STUDENT_SIZE)[None, :],
    )


@triton.jit
def head_and_rows(length, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The relation head of this program and its positions [M]: neighbours share a head, and so its rows in cache."""
    row_blocks = tl.cdiv(length, ROWS)
    program = tl.program_id(0)
    return program // row_blocks, program % row_blocks * ROWS + tl.arange(0, ROWS)


@triton.jit
def sequence_of_all():  # type: ignore[no-untyped-def]
    """The number of this program's sequence among all n * B, in 64 bits: it counts into the largest tensors."""
    return tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def head_of_relation(taps, head, sequence_stride, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where ``head`` of this program's sequence begins, in the tap of this program's relation."""
    tap = taps[0]
    for relation in tl.static_range(1, len(taps)):
        if tl.program_id(2) == relation:
            tap = taps[relation]
    return tap + tl.program_id(1).to(tl.int64) * sequence_stride + head * SIZE


@triton.jit
def load_statistics(statistics, positions, length, gain: tl.constexpr):  # type: ignore[no-untyped-def]
    """The maximum of the rows at ``positions`` and log2 of their sum, less ``gain``: probabilities become 2^gain P."""
    within = positions < length
    maximum = tl.load(statistics + positions, mask=within, other=0.0)
    log_sum = tl.load(statistics + length + positions, mask=within, other=0.0)
    return maximum, log_sum - gain


@triton.jit
def products(rows, columns, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """``rows columns^T``, accumulated in ``dtype``; float32 factors keep all their bits."""
    return tl.dot(rows, tl.trans(columns), out_dtype=dtype, input_precision="ieee")
