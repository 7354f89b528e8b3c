"""The definitions, in plain torch. They store several [N, V] tensors; no other backend does.

Shapes: N rows, D hidden size (of either model), V vocabulary, k tokens of which a teacher's probability is known.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits


def vocab_kl(
    student: FactoredLogits,
    teacher: FactoredLogits,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Sum over ``kl_rows`` of KL(p_t^T || p_s^T), and sum over labelled rows of the cross-entropy."""
    del gradient_weights  # autograd needs no promise
    dtype = accumulation_dtype(student.states, student.weight, teacher.states, teacher.weight)
    student_logits = _logits_of_rows(student, kl_rows | (labels != IGNORED), dtype)  # [N, V]
    teacher_logits = _logits_of_rows(teacher, kl_rows, dtype)  # [N, V]
    student_log = (student_logits / temperature).log_softmax(-1)
    teacher_log = (teacher_logits / temperature).log_softmax(-1)
    row_kl = (teacher_log.exp() * (teacher_log - student_log)).sum(-1)  # [N]
    return row_kl.masked_fill(~kl_rows, 0.0).sum(), _cross_entropy(student_logits, labels)


def vocab_topk_kl(
    student: FactoredLogits,
    teacher: TopLogits,
    labels: Tensor,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """As `vocab_kl`, of k + 1 outcomes: the teacher's k tokens, and any other."""
    del gradient_weights  # autograd needs no promise
    dtype = accumulation_dtype(student.states, student.weight, teacher.log_probabilities)
    student_logits = _logits_of_rows(student, kl_rows | (labels != IGNORED), dtype)  # [N, V]
    unused = ~kl_rows[:, None]
    token_ids = teacher.token_ids.masked_fill(unused, 0)
    teacher_log = torch.cat([teacher.log_probabilities, teacher.log_rest[:, None]], -1).to(dtype)  # [N, k + 1]
    teacher_log = teacher_log.masked_fill(unused, 0.0)
    student_log_all = (student_logits / teacher.temperature).log_softmax(-1)
    # Not infinite: where k = V, so that nothing is left to sum, the logarithm of the sum has a gradient.
    others = student_log_all.scatter(-1, token_ids, torch.finfo(dtype).min)  # [N, V]
    student_log = torch.cat([student_log_all.gather(-1, token_ids), others.logsumexp(-1, keepdim=True)], -1)
    terms = teacher_log.exp() * (teacher_log - student_log)
    impossible = teacher_log == -math.inf
    row_kl = terms.masked_fill(impossible, 0.0).sum(-1)  # [N]
    return row_kl.masked_fill(~kl_rows, 0.0).sum(), _cross_entropy(student_logits, labels)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor) -> Tensor:
    """Sum over labelled rows of the cross-entropy."""
    dtype = accumulation_dtype(student.states, student.weight)
    return _cross_entropy(_logits_of_rows(student, labels != IGNORED, dtype), labels)


def _logits_of_rows(logits: FactoredLogits, used: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, V] in ``dtype``; rows not ``used`` are those of zero states, whatever they hold."""
    states = logits.states.masked_fill(~used[:, None], 0.0)
    bias = None if logits.bias is None else logits.bias.to(dtype)
    return functional.linear(states.to(dtype), logits.weight.to(dtype), bias)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
