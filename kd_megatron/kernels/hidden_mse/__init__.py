"""Squared difference of hidden states of teacher and student (TinyBERT). See README.md beside this file.

Shapes: B batch, L length, D features.
"""

from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.hidden_mse import reference

BACKENDS = {
    "reference": reference.hidden_mse,
    "triton": door.triton_backend("kd_megatron.kernels.hidden_mse.triton_launch", "hidden_mse"),
}
LARGEST_TRITON_WIDTH = 8192  # features of one position, which a program holds in registers


def hidden_mse(student: Tensor, teacher: Tensor, valid: Tensor | None = None, backend: str = door.AUTO) -> Tensor:
    """Sum over valid positions and features of ``(student - teacher)^2``.

    Source: Jiao et al. 2020, TinyBERT (arXiv 1909.10351), hidden states based distillation; theirs is this sum divided
    by the number of positions and features.

    Args:
        student: [B, L, D], any floating dtype, projected to the teacher's width where that differs; computed in
            float32 at least, the gradient has its dtype.
        teacher: [B, L, D], any floating dtype, without gradient.
        valid: [B, L] bool, False at padding; None: no padding.
        backend: ``"auto"`` or a key of `BACKENDS`. ``"reference"`` alone can be differentiated twice.

    Returns:
        A scalar, float32 (float64 when an input is float64). Padding neither counts nor gets a gradient.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    states = {"student": student, "teacher": teacher}
    for name, tensor in states.items():
        door.check_floating(name, tensor, num_dimensions=3, shape="[B, L, D]")
        door.check_same_place(name, tensor, "student", student)
    door.check_frozen({"teacher": teacher})
    door.check_one_shape(states)
    door.check_mask("valid", valid, "student", student, num_dimensions=2)
    serves = door.triton_runs(student) and student.shape[2] <= LARGEST_TRITON_WIDTH
    compute = door.choose_backend(backend, BACKENDS, auto="triton" if serves else "reference")
    result: Tensor = compute(student, teacher, valid)
    return result


def hidden_mse_flops(length: int, width: int) -> float:
    """FLOPs of one sequence, forward and backward: difference, square, sum; backward 2. Of each feature: 5."""
    return 5.0 * length * width
