"""Divergence between the self-attention relations of teacher and student (MiniLMv2). See README.md beside this file.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads.
"""

from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.relation_kl import reference

BACKENDS = {"reference": reference.relation_kl}


def relation_kl(
    student: Tensor,
    teacher: Tensor,
    num_relation_heads: int,
    valid: Tensor | None = None,
    backend: str = door.AUTO,
) -> Tensor:
    """Sum over valid query rows and relation heads of KL(teacher's relation || student's relation), in nats.

    A relation is ``softmax(X X^T / sqrt(D/R))`` over the valid keys, X being one relation head of a projection
    (queries, keys or values). Source: Wang et al. 2021, MiniLMv2 (arXiv 2012.15828), section 3.1; theirs is this sum
    divided by R and by the number of rows.

    Args:
        student: [B, L, H_s, d_s], any floating dtype; computed in float32 at least, the gradient has its dtype.
        teacher: [B, L, H_t, d_t], any floating dtype, without gradient; widths H * d may differ.
        num_relation_heads: R; divides both widths, and is independent of the numbers of attention heads.
        valid: [B, L] bool, False at padding; None: no padding.
        backend: ``"auto"`` or a key of `BACKENDS`.

    Returns:
        A scalar, float32 (float64 when an input is float64). Padding neither counts nor gets a gradient.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    taps = {"student": student, "teacher": teacher}
    door.check_taps(taps)
    door.check_frozen({"teacher": teacher})
    door.check_heads("num_relation_heads", num_relation_heads, taps)
    door.check_mask("valid", valid, "student", student, num_dimensions=2)
    compute = door.choose_backend(backend, BACKENDS, auto="reference")
    with door.without_autocast(student):
        return compute(student, teacher, num_relation_heads, valid)


def relation_kl_flops(length: int, num_relation_heads: int, student_width: int, teacher_width: int) -> float:
    """FLOPs of one sequence, forward and backward, whatever the backend recomputes.

    Products: forward ``2 L^2 (D_s + D_t)``, backward ``4 L^2 D_s`` (X stands on both sides of X X^T). Per entry of the
    R relations of L x L: 2 scalings, 2 log-softmaxes of 4, 4 for the divergence; backward 3 (README.md): 17.
    """
    products = 2 * length**2 * (student_width + teacher_width) + 4 * length**2 * student_width
    return float(products + 17 * num_relation_heads * length**2)
