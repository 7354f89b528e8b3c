"""Divergence between the self-attention relations of teacher and student (MiniLMv2). See README.md beside this file.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads, n relations.
"""

from collections.abc import Sequence

from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.relation_kl import chunked, reference

MOST_RELATIONS = 3  # of queries, keys and values
LARGEST_TRITON_HEAD = 512  # features: larger ones do not fit into registers
# The longest sequence, and the largest head, of which a Triton program can hold all columns: loss and gradient at once.
LONGEST_WHOLE = 128
LARGEST_WHOLE_HEAD = 64

BACKENDS = {
    "reference": reference.relation_kl,
    "chunked": chunked.relation_kl,
    "triton": door.triton_backend("kd_megatron.kernels.relation_kl.triton_launch", "relation_kl"),
}


def relation_kl(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    num_relation_heads: int,
    valid: Tensor | None = None,
    backend: str = door.AUTO,
) -> Tensor:
    """Per relation: sum over valid query rows and relation heads of KL(teacher's relation || student's), in nats.

    A relation is ``softmax(X X^T / sqrt(D/R))`` over the valid keys, X being one relation head of a projection
    (queries, keys or values). Source: Wang et al. 2021, MiniLMv2 (arXiv 2012.15828), section 3.1; theirs is this sum
    divided by R and by the number of rows.

    Args:
        student: 1 to 3 projections [B, L, H_s, d_s] of one shape and floating dtype. They may be views of a fused
            projection. Computed in float32 at least; gradients have the dtype of the projections.
        teacher: as many [B, L, H_t, d_t], any floating dtype, without gradient; widths H * d may differ.
        num_relation_heads: R; divides both widths, and is independent of the numbers of attention heads.
        valid: [B, L] bool, False at padding; None: no padding.
        backend: ``"auto"`` or a key of `BACKENDS`. ``"reference"`` alone stores anything of size L * L, and alone can
            be differentiated twice.

    Returns:
        [n], float32 (float64 when an input is float64). Padding neither counts nor gets a gradient.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    students = door.named_taps("student", student, MOST_RELATIONS)
    teachers = door.named_taps("teacher", teacher, MOST_RELATIONS)
    if len(students) != len(teachers):
        raise ValueError(f"teacher has {len(teachers)} tensors; allowed: {len(students)}, as many as student")
    door.check_taps({**students, **teachers})
    door.check_alike(students)
    door.check_alike(teachers)
    door.check_frozen(teachers)
    door.check_heads("num_relation_heads", num_relation_heads, {"student": student[0], "teacher": teacher[0]})
    door.check_mask("valid", valid, "student[0]", student[0], num_dimensions=2)
    head_size = max(tap.shape[2] * tap.shape[3] for tap in (student[0], teacher[0])) // num_relation_heads
    auto = "triton" if door.triton_runs(student[0]) and head_size <= LARGEST_TRITON_HEAD else "chunked"
    compute = door.choose_backend(backend, BACKENDS, auto)
    with door.without_autocast(student[0]):
        return compute(student, teacher, num_relation_heads, valid)


def relation_kl_flops(length: int, num_relation_heads: int, student_width: int, teacher_width: int) -> float:
    """FLOPs of one relation of one sequence, forward and backward, whatever the backend recomputes.

    Products: forward ``2 L^2 (D_s + D_t)``, backward ``4 L^2 D_s`` (X stands on both sides of X X^T). Per entry of the
    R relations of L x L: 2 scalings, 2 log-softmaxes of 4, 4 for the divergence; backward 3 (README.md): 17.
    """
    products = 2 * length**2 * (student_width + teacher_width) + 4 * length**2 * student_width
    return float(products + 17 * num_relation_heads * length**2)
