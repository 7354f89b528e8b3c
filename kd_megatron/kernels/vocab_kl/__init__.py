"""Distillation and MLM losses over the vocabulary (Vanilla-KD). See README.md beside this file.

Shapes: N rows (positions), D hidden size of the student, D_t of the teacher, V vocabulary.
"""

from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.kernels.vocab_kl import arguments, chunked, liger, reference
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

TRITON = "kd_megatron.kernels.vocab_kl.triton_launch"

BACKENDS = {
    "reference": reference.vocab_kl,
    "chunked": chunked.vocab_kl,
    "triton": door.triton_backend(TRITON, "vocab_kl"),
}
TOPK_BACKENDS = {  # the same names
    "reference": reference.vocab_topk_kl,
    "chunked": chunked.vocab_topk_kl,
    "triton": door.triton_backend(TRITON, "vocab_topk_kl"),
}
CROSS_ENTROPY_BACKENDS = {
    "reference": reference.vocab_cross_entropy,
    "chunked": chunked.vocab_cross_entropy,
    "triton": door.triton_backend(TRITON, "vocab_cross_entropy"),
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
    arguments.check_logits("student", student)
    arguments.check_logits("teacher", teacher)
    arguments.check_teacher(student, teacher)
    arguments.check_labels(labels, student)
    arguments.check_temperature("temperature", temperature)
    arguments.check_use(student, kl_rows, gradient_weights)
    compute = door.choose_backend(backend, BACKENDS, _auto(student))
    with door.without_autocast(student.states):
        rows = labels != IGNORED if kl_rows is None else kl_rows
        return compute(student, teacher, labels, temperature, rows, gradient_weights)


def vocab_topk_kl(
    student: FactoredLogits,
    teacher: TopLogits,
    labels: Tensor,
    kl_rows: Tensor | None = None,
    gradient_weights: tuple[float, float] = (1.0, 1.0),
    backend: str = door.AUTO,
) -> tuple[Tensor, Tensor]:
    """`vocab_kl` with a teacher of whom the k likeliest tokens are known, out of a cache say: both sums in nats.

    The divergence is of k + 1 outcomes, the last of them any other token. It is at most that of `vocab_kl`, by the
    share of the rest times the divergence within it (README.md), and the same at k = V.

    Args (the others, and what is returned and raised, as of `vocab_kl`):
        teacher: log_probabilities [N, k], any floating dtype; token_ids [N, k] int64, distinct in a row;
            log_rest [N]; without gradients. Its temperature is that of the divergence.
        kl_rows: [N] bool, the rows of the divergence; None: those with a label. What the teacher holds elsewhere has
            no effect.
        backend: ``"auto"`` or a key of `TOPK_BACKENDS`.
    """
    arguments.check_logits("student", student)
    arguments.check_labels(labels, student)
    arguments.check_use(student, kl_rows, gradient_weights)
    rows = labels != IGNORED if kl_rows is None else kl_rows
    arguments.check_top_logits(teacher, student, rows)
    compute = door.choose_backend(backend, TOPK_BACKENDS, _auto(student))
    with door.without_autocast(student.states):
        return compute(student, teacher, labels, rows, gradient_weights)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor, backend: str = door.AUTO) -> Tensor:
    """The cross-entropy of `vocab_kl` alone, a scalar; ``backend``: ``"auto"`` or one of `CROSS_ENTROPY_BACKENDS`."""
    arguments.check_logits("student", student)
    arguments.check_labels(labels, student)
    compute = door.choose_backend(backend, CROSS_ENTROPY_BACKENDS, _auto(student))
    with door.without_autocast(student.states):
        return compute(student, labels)


def _auto(student: FactoredLogits) -> str:
    return "triton" if door.triton_runs(student.states) else "chunked"


def vocab_kl_flops(num_rows: int, vocab_size: int) -> float:
    """FLOPs of ``num_rows`` rows, forward and backward, the heads' products not included (they are the models').

    The definition's, whatever a backend saves of it. Per logit: 2 divisions by T, 3 log-softmaxes of 4, 4 for the
    divergence; backward 3 for the divergence, 2 for the cross-entropy, 1 to add them: 24.
    """
    return 24.0 * num_rows * vocab_size
