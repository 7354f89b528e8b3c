"""The definition of `score_mse`, in plain torch. It stores [B, H, L, L] tensors; other backends do not.

Shapes: B batch, L length, H heads, d head size.
"""

from torch import Tensor

from kd_megatron.kernels.arithmetic import Pair, accumulation_dtype, scaled_scores, split_heads, zero_padding


def score_mse(student: Pair, teacher: Pair, num_heads: int, valid: Tensor | None) -> Tensor:
    """Sum of squared differences of the scaled scores before softmax, over valid pairs and heads."""
    dtype = accumulation_dtype(*student, *teacher)

    def heads(tap: Tensor) -> Tensor:  # [B, H, L, d]
        return split_heads(zero_padding(tap.to(dtype), valid), num_heads)

    # A pair with a padded query or key has score 0 on both sides: no further mask is needed.
    student_scores, teacher_scores = (scaled_scores(*map(heads, pair)) for pair in (student, teacher))  # [B, H, L, L]
    return (student_scores - teacher_scores).square().sum()
