"""The definition of `vocab_kl`, in plain torch. It stores several [N, V] tensors; other backends do not.

Shapes: N rows (positions), V vocabulary.
"""

from torch import Tensor
from torch.nn import functional

from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.tensors import IGNORED


def vocab_kl(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, kl_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over ``kl_rows`` of KL(p_t^T || p_s^T), and sum over labelled rows of the cross-entropy."""
    dtype = accumulation_dtype(student_logits, teacher_logits)
    unused = ~(kl_rows | (labels != IGNORED))
    student = student_logits.masked_fill(unused[:, None], 0.0).to(dtype)  # [N, V]
    teacher = teacher_logits.masked_fill(unused[:, None], 0.0).to(dtype)  # [N, V]
    student_log = (student / temperature).log_softmax(-1)
    teacher_log = (teacher / temperature).log_softmax(-1)
    row_kl = (teacher_log.exp() * (teacher_log - student_log)).sum(-1)  # [N]
    cross_entropy = functional.cross_entropy(student, labels, ignore_index=IGNORED, reduction="sum")
    return row_kl.masked_fill(~kl_rows, 0.0).sum(), cross_entropy
