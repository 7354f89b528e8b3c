"""The definition of `relation_kl`, in plain torch. It stores [B, R, L, L] tensors; other backends do not.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads, n relations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_megatron.kernels.arithmetic import accumulation_dtype, scaled_scores, split_heads, zero_padding


def relation_kl(
    student: Sequence[Tensor], teacher: Sequence[Tensor], num_relation_heads: int, valid: Tensor | None
) -> Tensor:
    """[n]: sums over valid query rows and relation heads of KL(teacher's relation || student's relation)."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_of_one_relation(s, t, num_relation_heads, valid) for s, t in pairs])


def _of_one_relation(student: Tensor, teacher: Tensor, num_relation_heads: int, valid: Tensor | None) -> Tensor:
    dtype = accumulation_dtype(student, teacher)
    student_log = log_relation(student.to(dtype), num_relation_heads, valid)  # [B, R, L, L]
    teacher_log = log_relation(teacher.to(dtype), num_relation_heads, valid)  # [B, R, L, L]
    row_kl = (teacher_log.exp() * (teacher_log - student_log)).sum(-1)  # [B, R, L]
    if valid is not None:  # zeroed padding has equal relations on both sides; said again, as this is the definition
        row_kl = row_kl.masked_fill(~valid[:, None, :], 0.0)
    return row_kl.sum()


def log_relation(tap: Tensor, num_relation_heads: int, valid: Tensor | None) -> Tensor:
    """log softmax(X X^T / sqrt(D/R)) over the valid keys, of a projection [B, L, H, d]: [B, R, L, L]."""
    heads = split_heads(zero_padding(tap, valid), num_relation_heads)
    scores = scaled_scores(heads, heads)
    if valid is not None:
        # The lowest finite number, not -inf: its probability is 0 all the same, and 0 * (low - low) is not NaN.
        scores = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)
