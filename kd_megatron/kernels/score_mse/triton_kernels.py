"""The direct kernel of `score_mse`. Of the score differences nothing leaves a program's registers.

Shapes: B sequences, L length, H heads, d head size; M rows and N columns of a tile, P a head size padded to a power of
two. In one launch rows are queries and columns are keys, in another the reverse: the tile is then transposed.

    D = c_s A_s B_s^T - c_t A_t B_t^T,  c = 1 / sqrt(d);     loss: the sum of D^2;     gradient of A_s: 2 c_s D B_s
"""

import triton
import triton.language as tl

from kd_megatron.kernels.triton_tools import load_rows, used_positions


@triton.jit
def score_tiles(  # type: ignore[no-untyped-def]
    student_rows,  # A_s, [B, L, D_s] with adjacent features
    student_columns,  # B_s, of the same strides
    teacher_rows,  # A_t, [B, L, D_t] with adjacent features
    teacher_columns,  # B_t, of the same strides
    valid,  # [B, L] bool, or None: no padding
    losses,  # [B, H * row blocks], written where WITH_LOSS: the sum of D^2 over the rows of a program
    gradient,  # [B, L, D_s] contiguous, of student_rows, written; or None: not wanted
    length,
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
    WITH_LOSS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: (H * row blocks, B). M rows of one head stream over its columns, N at a time.

    Both products go into one accumulator, so D keeps its precision where the student is near the teacher. Padded rows
    and columns are zeros when loaded, and so are their scores in both models: no tile is masked.
    """
    accumulated: tl.constexpr = losses.dtype.element_ty  # float32, or float64 in the interpreter
    student_scale: tl.constexpr = STUDENT_SIZE**-0.5
    teacher_share: tl.constexpr = (STUDENT_SIZE / TEACHER_SIZE) ** 0.5  # c_t / c_s
    row_blocks = tl.cdiv(length, ROWS)
    head = tl.program_id(0) // row_blocks  # neighbours share a head, and so its columns in cache
    rows = tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)
    sequence = tl.program_id(1).to(tl.int64)
    student_start = sequence * student_sequence_stride + head * STUDENT_SIZE
    teacher_start = sequence * teacher_sequence_stride + head * TEACHER_SIZE

    row_used = used_positions(valid, sequence, rows, length)  # [M]
    a_s = load_rows(
        student_rows + student_start, rows, row_used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST
    )
    a_t = load_rows(
        teacher_rows + teacher_start, rows, row_used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST
    )
    squares = tl.zeros([ROWS], accumulated)
    total = tl.zeros([ROWS, STUDENT_PADDED], accumulated)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        used = used_positions(valid, sequence, columns, length)  # [N]
        b_t = load_rows(
            teacher_columns + teacher_start, columns, used, teacher_row_stride, TEACHER_SIZE, TEACHER_PADDED, UPCAST
        )
        b_s = load_rows(
            student_columns + student_start, columns, used, student_row_stride, STUDENT_SIZE, STUDENT_PADDED, UPCAST
        )
        # D / c_s, [M, N]: the accumulator of the teacher's product, scaled, goes on as that of the student's.
        tile = tl.dot(a_t, tl.trans(b_t), out_dtype=accumulated, input_precision="ieee") * -teacher_share
        tile = tl.dot(a_s, tl.trans(b_s), tile, out_dtype=accumulated, input_precision="ieee")
        if WITH_LOSS:
            squares += tl.sum(tile * tile, 1)
        if gradient is not None:
            # Matrix instructions take factors of one dtype: D is rounded to that of B_s. See README.md, precision.
            total = tl.dot(tile.to(b_s.dtype), b_s, total, out_dtype=accumulated, input_precision="ieee")

    if WITH_LOSS:
        program = sequence * tl.num_programs(0) + tl.program_id(0)
        tl.store(losses + program, tl.sum(squares, 0) * (student_scale * student_scale))
    if gradient is not None:
        features = tl.arange(0, STUDENT_PADDED)
        num_heads = tl.num_programs(0) // row_blocks
        places = ((sequence * length + rows) * num_heads + head) * STUDENT_SIZE  # [M], in [B, L, H, d]
        tl.store(
            gradient + places[:, None] + features[None, :],
            total * (2.0 * student_scale * student_scale),
            mask=(rows < length)[:, None] & (features < STUDENT_SIZE)[None, :],
        )
