"""The definition of `hidden_mse`, in plain torch; also the backend of CPUs.

Shapes: B batch, L length, D features.
"""

from torch import Tensor

from kd_megatron.kernels.arithmetic import accumulation_dtype


def hidden_mse(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Sum over valid positions and features of (student - teacher)^2, of hidden states [B, L, D]."""
    dtype = accumulation_dtype(student, teacher)
    difference = student.to(dtype) - teacher.to(dtype)
    if valid is not None:
        difference = difference.masked_fill(~valid[:, :, None], 0.0)
    return difference.square().sum()
