"""Squared difference of attention scores of teacher and student (TinyBERT). See README.md beside this file.

Shapes: B batch, L length, H heads, d head size, D = H * d.
"""

from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.score_mse import closed_form, reference, tiled

BACKENDS = {
    "reference": reference.score_mse,
    "closed_form": closed_form.score_mse,
    "tiled": tiled.score_mse,
    "triton": door.triton_backend("kd_megatron.kernels.score_mse.triton_launch", "score_mse"),
}

# Lengths, in head sizes (the mean of both models), above which the closed form is faster than tiles of scores. On a
# CPU measured, see README.md; on a GPU a bound from counted operations.
CROSSING_ON_CPU = 2.5
CROSSING_ON_GPU = 2.0


def score_mse(
    student_queries: Tensor,
    student_keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    num_heads: int | None = None,
    valid: Tensor | None = None,
    backend: str = door.AUTO,
) -> Tensor:
    """Sum over heads and valid (query, key) pairs of the squared difference of ``Q K^T / sqrt(d)``, before softmax.

    Source: Jiao et al. 2020, TinyBERT (arXiv 1909.10351), attention based distillation without softmax; theirs is
    this sum divided by the number of heads and pairs. Each side is scaled by its own head size.

    Args:
        student_queries, student_keys: [B, L, H_s, d_s], any floating dtype; computed in float32 at least, gradients
            have their dtypes.
        teacher_queries, teacher_keys: [B, L, H_t, d_t], any floating dtype, without gradient.
        num_heads: split every projection anew into this many heads of D/num_heads features (an extension to the
            paper); None: the heads as they are, equal in number.
        valid: [B, L] bool, False at padding; None: no padding. A pair is valid when both its positions are.
        backend: ``"auto"`` or a key of `BACKENDS`; ``"auto"`` takes the closed form for long sequences, tiles for
            short ones (README.md says where they part, and what the closed form costs in precision).

    Returns:
        A scalar, float32 (float64 when an input is float64). Padding neither counts nor gets a gradient.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    student = {"student_queries": student_queries, "student_keys": student_keys}
    teacher = {"teacher_queries": teacher_queries, "teacher_keys": teacher_keys}
    door.check_taps({**student, **teacher})
    door.check_frozen(teacher)
    door.check_one_shape(student)
    door.check_one_shape(teacher)
    if num_heads is None:
        num_heads = _agreed_heads(student_queries, teacher_queries)
    door.check_heads("num_heads", num_heads, {**student, **teacher})
    door.check_mask("valid", valid, "student_queries", student_queries, num_dimensions=2)
    compute = door.choose_backend(backend, BACKENDS, auto=_fastest(student_queries, teacher_queries, num_heads))
    with door.without_autocast(student_queries):
        return compute((student_queries, student_keys), (teacher_queries, teacher_keys), num_heads, valid)


def _agreed_heads(student_queries: Tensor, teacher_queries: Tensor) -> int:
    student_heads, teacher_heads = student_queries.shape[2], teacher_queries.shape[2]
    if student_heads != teacher_heads:
        widths = [queries.shape[2] * queries.shape[3] for queries in (student_queries, teacher_queries)]
        raise ValueError(
            f"teacher_queries has {teacher_heads} heads; allowed: {student_heads}, as student_queries, "
            f"or num_heads given, one of {door.shared_divisors(*widths)}"
        )
    return student_heads


def _fastest(student_queries: Tensor, teacher_queries: Tensor, num_heads: int) -> str:
    length = student_queries.shape[1]
    widths = [queries.shape[2] * queries.shape[3] for queries in (student_queries, teacher_queries)]
    lengths_in_heads = length * 2 * num_heads / sum(widths)
    if lengths_in_heads > (CROSSING_ON_GPU if student_queries.is_cuda else CROSSING_ON_CPU):
        return "closed_form"
    return "triton" if door.triton_runs(student_queries) else "tiled"


def score_mse_flops(length: int, num_heads: int, student_width: int, teacher_width: int) -> float:
    """FLOPs of one sequence, forward and backward, whatever the backend recomputes.

    Products: forward ``2 L^2 (D_s + D_t)``, backward ``4 L^2 D_s`` (to queries and to keys). Per entry of the scores
    of ``num_heads`` heads: 2 scalings, difference, square, sum; backward 2: 7.
    """
    products = 2 * length**2 * (student_width + teacher_width) + 4 * length**2 * student_width
    return float(products + 7 * num_heads * length**2)
