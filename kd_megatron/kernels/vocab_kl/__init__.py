"""Distillation and MLM losses over the vocabulary (Vanilla-KD). See README.md beside this file.

Shapes: N rows (positions), D hidden size of the student, D_t of the teacher, V vocabulary.
"""

import math

import torch
from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.vocab_kl import chunked, liger, reference
from kd_megatron.tensors import IGNORED, FactoredLogits

BACKENDS = {"reference": reference.vocab_kl, "chunked": chunked.vocab_kl}
CROSS_ENTROPY_BACKENDS = {
    "reference": reference.vocab_cross_entropy,
    "chunked": chunked.vocab_cross_entropy,
    "liger": liger.vocab_cross_entropy,
}


def vocab_kl(
    student: FactoredLogits,
    teacher: FactoredLogits,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor | None = None,
    gradient_weights: tuple[float, float] = (1.0, 1.0),
    backend: str = door.AUTO,
) -> tuple[Tensor, Tensor]:
    """Sum of KL(p_t^T || p_s^T) over rows, and sum of the cross-entropy with ``labels``; both in nats.

    ``p^T = softmax(logits / T)``; the divergence is summed over the vocabulary. The factor T^2 which keeps gradients
    comparable across temperatures (Hinton et al. 2015, arXiv 1503.02531, section 2) is the caller's. The cross-entropy
    is at temperature 1.

    Args:
        student: states [N, D], weight [V, D], bias [V] or None; any floating dtypes, computed in float32 at least;
            each gradient has the dtype of its tensor.
        teacher: states [N, D_t], weight [V, D_t], bias [V] or None; without gradients.
        labels: [N] int64; `IGNORED` rows have no cross-entropy.
        temperature: T > 0.
        kl_rows: [N] bool, the rows of the divergence; None: those with a label.
        gradient_weights: (a, b), a promise that the sums are used as factor * (a * divergence + b * cross-entropy), so
            that one pass over the rows makes losses and gradients. A backward in another proportion is an error: a
            ValueError on a CPU, a device assertion on a GPU. The reference backend needs no promise and checks none.
        backend: ``"auto"`` or a key of `BACKENDS`.

    Returns:
        (divergence, cross-entropy), scalars, float32 (float64 when an input is float64).

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    _check_logits("student", student)
    _check_logits("teacher", teacher)
    _check_teacher(student, teacher)
    _check_labels(labels, student)
    door.check_mask("kl_rows", kl_rows, "student.states", student.states, num_dimensions=1)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; allowed: greater than 0, and finite")
    if not all(math.isfinite(weight) for weight in gradient_weights):
        raise ValueError(f"gradient_weights is {gradient_weights}; allowed: two finite numbers")
    compute = door.choose_backend(backend, BACKENDS, auto="chunked")
    with door.without_autocast(student.states):
        rows = labels != IGNORED if kl_rows is None else kl_rows
        return compute(student, teacher, labels, temperature, rows, gradient_weights)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor, backend: str = door.AUTO) -> Tensor:
    """Sum of the cross-entropy of ``labels`` over the rows that have one, in nats.

    Args:
        student: states [N, D], weight [V, D], bias [V] or None; any floating dtypes, computed in float32 at least;
            each gradient has the dtype of its tensor.
        labels: [N] int64; `IGNORED` rows do not count.
        backend: ``"auto"`` or a key of `CROSS_ENTROPY_BACKENDS`.

    Returns:
        A scalar, float32 (float64 when an input is float64).

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it, what was given and what is allowed.
    """
    _check_logits("student", student)
    _check_labels(labels, student)
    compute = door.choose_backend(backend, CROSS_ENTROPY_BACKENDS, auto="chunked")
    with door.without_autocast(student.states):
        return compute(student, labels)


def _check_logits(name: str, logits: FactoredLogits) -> None:
    if not isinstance(logits, FactoredLogits):
        raise TypeError(f"{name} is {type(logits).__name__}; allowed: FactoredLogits (states, weight, bias)")
    states, weight, bias = logits.states, logits.weight, logits.bias
    door.check_floating(f"{name}.states", states, num_dimensions=2, shape="[N, D]")
    door.check_floating(f"{name}.weight", weight, num_dimensions=2, shape="[V, D]")
    door.check_same_place(f"{name}.weight", weight, f"{name}.states", states)
    vocab_size, hidden_size = weight.shape
    if hidden_size != states.shape[1]:
        raise ValueError(
            f"{name}.weight has shape {tuple(weight.shape)}; "
            f"allowed: [V, {states.shape[1]}], as {name}.states has {states.shape[1]} features"
        )
    if bias is None:
        return
    door.check_floating(f"{name}.bias", bias, num_dimensions=1, shape="[V]")
    door.check_same_place(f"{name}.bias", bias, f"{name}.states", states)
    if bias.shape[0] != vocab_size:
        raise ValueError(f"{name}.bias has shape {tuple(bias.shape)}; allowed: ({vocab_size},), as {name}.weight")


def _check_teacher(student: FactoredLogits, teacher: FactoredLogits) -> None:
    tensors = {"teacher.states": teacher.states, "teacher.weight": teacher.weight, "teacher.bias": teacher.bias}
    door.check_frozen({name: tensor for name, tensor in tensors.items() if tensor is not None})
    door.check_same_place("teacher.states", teacher.states, "student.states", student.states)
    for name, index, size in (("states", 0, "rows"), ("weight", 0, "tokens")):
        given, allowed = getattr(teacher, name).shape[index], getattr(student, name).shape[index]
        if given != allowed:
            raise ValueError(f"teacher.{name} has {given} {size}; allowed: {allowed}, as student.{name}")


def _check_labels(labels: Tensor, student: FactoredLogits) -> None:
    num_rows, vocab_size = student.states.shape[0], student.weight.shape[0]
    if labels.dtype != torch.int64:
        raise TypeError(f"labels is {labels.dtype}; allowed: torch.int64")
    if labels.shape != (num_rows,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: ({num_rows},)")
    door.check_same_place("labels", labels, "student.states", student.states)
    if labels.is_cuda:  # looking would make the host wait; the gather of the loss asserts on the device
        return
    outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= vocab_size))]
    if outside.numel():
        raise ValueError(
            f"labels has {outside[0].item()}; allowed: 0 to {vocab_size - 1}, or {IGNORED} for a row without a label"
        )


def vocab_kl_flops(num_rows: int, vocab_size: int) -> float:
    """FLOPs of ``num_rows`` rows, forward and backward, the heads' products not included (they are the models').

    The definition's, whatever a backend saves of it. Per logit: 2 divisions by T, 3 log-softmaxes of 4, 4 for the
    divergence; backward 3 for the divergence, 2 for the cross-entropy, 1 to add them: 24.
    """
    return 24.0 * num_rows * vocab_size
