"""The definition of `score_mse`, in plain torch. It stores [B, H, L, L] tensors; other backends do not.

Shapes: B batch, L length, H heads, d head size.
"""

from torch import Tensor

from kd_megatron.kernels.arithmetic import accumulation_dtype, scaled_scores, split_heads, zero_padding


def score_mse(
    student_queries: Tensor,
    student_keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    num_heads: int,
    valid: Tensor | None,
) -> Tensor:
    """Sum of squared differences of the scaled scores before softmax, over valid pairs and heads."""
    dtype = accumulation_dtype(student_queries, student_keys, teacher_queries, teacher_keys)

    def heads(tap: Tensor) -> Tensor:  # [B, H, L, d]
        return split_heads(zero_padding(tap.to(dtype), valid), num_heads)

    # A pair with a padded query or key has score 0 on both sides: no further mask is needed.
    student_scores = scaled_scores(heads(student_queries), heads(student_keys))  # [B, H, L, L]
    teacher_scores = scaled_scores(heads(teacher_queries), heads(teacher_keys))  # [B, H, L, L]
    return (student_scores - teacher_scores).square().sum()
