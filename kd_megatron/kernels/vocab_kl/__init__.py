"""Distillation and MLM losses over the vocabulary (Vanilla-KD). See README.md beside this file.

Shapes: N rows (positions), V vocabulary.
"""

import torch
from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.vocab_kl import reference
from kd_megatron.tensors import IGNORED

BACKENDS = {"reference": reference.vocab_kl}


def vocab_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor | None = None,
    backend: str = door.AUTO,
) -> tuple[Tensor, Tensor]:
    """Sum of KL(p_t^T || p_s^T) over rows, and sum of the cross-entropy with ``labels``; both in nats.

    ``p^T = softmax(logits / T)``; the divergence is summed over the vocabulary. The factor T^2 which keeps gradients
    comparable across temperatures (Hinton et al. 2015, arXiv 1503.02531, section 2) is the caller's. The cross-entropy
    is at temperature 1.

    Args:
        student_logits: [N, V], any floating dtype; computed in float32 at least, the gradient has its dtype.
        teacher_logits: [N, V], any floating dtype, without gradient.
        labels: [N] int64; `IGNORED` rows have no cross-entropy.
        temperature: T > 0.
        kl_rows: [N] bool, the rows of the divergence; None: those with a label.
        backend: ``"auto"`` or a key of `BACKENDS`.

    Returns:
        (divergence, cross-entropy), scalars, float32 (float64 when an input is float64).

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    _check_logits(student_logits, teacher_logits)
    _check_labels(labels, student_logits)
    door.check_mask("kl_rows", kl_rows, "student_logits", student_logits, num_dimensions=1)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; allowed: greater than 0")
    compute = door.choose_backend(backend, BACKENDS, auto="reference")
    with door.without_autocast(student_logits):
        rows = labels != IGNORED if kl_rows is None else kl_rows
        return compute(student_logits, teacher_logits, labels, temperature, rows)


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    door.check_floating("student_logits", student_logits, num_dimensions=2, shape="[N, V]")
    door.check_floating("teacher_logits", teacher_logits, num_dimensions=2, shape="[N, V]")
    door.check_same_place("teacher_logits", teacher_logits, "student_logits", student_logits)
    door.check_frozen({"teacher_logits": teacher_logits})
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)}; "
            f"allowed: {tuple(student_logits.shape)}, as student_logits"
        )


def _check_labels(labels: Tensor, student_logits: Tensor) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels is {labels.dtype}; allowed: torch.int64")
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: {tuple(student_logits.shape[:1])}")
    door.check_same_place("labels", labels, "student_logits", student_logits)


def vocab_kl_flops(num_rows: int, vocab_size: int) -> float:
    """FLOPs of ``num_rows`` rows, forward and backward, the head that made the logits not included.

    Per logit: 2 divisions by T, 3 log-softmaxes of 4, 4 for the divergence; backward 3 for the divergence, 2 for the
    cross-entropy, 1 to add them: 24.
    """
    return 24.0 * num_rows * vocab_size
