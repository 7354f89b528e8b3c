"""`score_mse` from Gram matrices, in O(L d^2): no score is ever computed. README.md derives it and bounds its error.

    D = c_s Q_s K_s^T - c_t Q_t K_t^T,  c = 1 / sqrt(d)
    ||D||^2 = c_s^2 <Q_s^T Q_s, K_s^T K_s> - 2 c_s c_t <Q_t^T Q_s, K_t^T K_s> + c_t^2 <Q_t^T Q_t, K_t^T K_t>

Shapes: B batch, b sequences of a block, L length, H heads, n = b * H, d_s and d_t head sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd_megatron.kernels.arithmetic import Pair, accumulation_dtype, split_heads
from kd_megatron.kernels.autograd import Gradients, differentiable, new_gradients

BLOCK_ELEMENTS = 2**24  # of a tap, copied at a time on a GPU: enough to fill it, 64 MiB in float32


class Grams(NamedTuple):
    """Of the queries, or of the keys, of student and teacher: float32 at least."""

    student: Tensor  # X_s^T X_s, [n, d_s, d_s]
    mixed: Tensor  # X_t^T X_s, [n, d_t, d_s]
    teacher: Tensor  # X_t^T X_t, [n, d_t, d_t]


class Scales(NamedTuple):
    """What stands before the three inner products of Grams."""

    student: float
    mixed: float
    teacher: float


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 products in float32, whatever the process allows elsewhere: in TF32 D would drown in rounding.

    torch has two switches, one for the process and one for each library, and a product fails where they disagree: both
    are set, and both are put back.
    """
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    of_process, before = _precision_of_process(), [setting.fp32_precision for setting in settings]
    try:
        torch.set_float32_matmul_precision("highest")
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(of_process)
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _precision_of_process() -> str:
    """What `torch.set_float32_matmul_precision` was last given; ``"highest"`` where the other switch overrules it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say
        return "highest"


@differentiable
@_full_float32()
def score_mse(
    student: Pair, teacher: Pair, num_heads: int, valid: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor, Gradients]:
    """Sum of squared differences of the scaled scores. Its rounding is relative to the scores, not to D."""
    taps = (*student, *teacher)
    heads = [split_heads(tap, num_heads) for tap in taps]  # [B, H, L, d]
    student_size, teacher_size = heads[0].shape[-1], heads[2].shape[-1]
    scales = Scales(1.0 / student_size, -2.0 * (student_size * teacher_size) ** -0.5, 1.0 / teacher_size)
    dtype, factor_dtype = accumulation_dtype(*taps), _factor_dtype(*taps)
    gradients = new_gradients(student, wanted, dtype)
    loss = torch.zeros((), dtype=torch.float64, device=student[0].device)
    for block in _blocks(student[0]):
        padding = None if valid is None else ~valid[block, None, :, None]  # [b, 1, L, 1]
        q_s, k_s, q_t, k_t = (_factor(x[block], padding, factor_dtype) for x in heads)
        queries, keys = _grams(q_s, q_t), _grams(k_s, k_t)
        loss += sum(scale * _inner_product(*pair) for scale, *pair in zip(scales, queries, keys, strict=True))
        sides = ((gradients[0], q_s, q_t, keys), (gradients[1], k_s, k_t, queries))
        for gradient, x_s, x_t, other in sides:
            if gradient is not None:
                rows = _gradient(x_s, x_t, other, scales)  # [n, L, d_s]
                split_heads(gradient[block], num_heads).copy_(rows.unflatten(0, (-1, num_heads)))
    return loss.to(dtype), gradients


def _factor_dtype(*taps: Tensor) -> torch.dtype:
    """What the products read: bfloat16 on a GPU, which adds it up in float32, and otherwise the wide dtype itself."""
    if all(tap.is_cuda and tap.dtype == torch.bfloat16 for tap in taps):
        return torch.bfloat16
    return accumulation_dtype(*taps)


def _blocks(tap: Tensor) -> Iterator[slice]:
    """One sequence on a CPU, so that the heads of a tap are strided matrices and no copy is made of it."""
    num_sequences = max(1, BLOCK_ELEMENTS // max(1, tap[0].numel())) if tap.is_cuda else 1
    for start in range(0, len(tap), num_sequences):
        yield slice(start, start + num_sequences)


def _factor(heads: Tensor, padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[b, H, L, d] as matrices [n, L, d], zero at padding: its scores, and its rows of the gradients, are then 0."""
    if padding is not None:
        heads = heads.masked_fill(padding, 0.0)
    return heads.to(dtype).flatten(0, 1)


def _grams(student: Tensor, teacher: Tensor) -> Grams:
    return Grams(_gram(student, student), _gram(teacher, student), _gram(teacher, teacher))


def _gram(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.bfloat16:
        return torch.bmm(left.mT, right, out_dtype=torch.float32)
    return torch.bmm(left.mT, right)


def _inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Summed in float64: the three inner products nearly cancel when the student is near the teacher."""
    return (left * right).sum(dtype=torch.float64)


def _gradient(student: Tensor, teacher: Tensor, other: Grams, scales: Scales) -> Tensor:
    """[n, L, d_s]: for the queries 2 c_s D K_s = 2 c_s^2 Q_s (K_s^T K_s) - 2 c_s c_t Q_t (K_t^T K_s)."""
    of_student, of_teacher = (2.0 * scales.student) * other.student, scales.mixed * other.mixed
    if student.dtype != torch.bfloat16:
        return torch.bmm(student, of_student).baddbmm_(teacher, of_teacher)
    total = _split_product(student, of_student)
    return total.add_(_split_product(teacher, of_teacher))


def _split_product(narrow: Tensor, wide: Tensor) -> Tensor:
    """bfloat16 times float32 by tensor cores: ``wide`` is cut into two bfloat16 summands, which hold 16 bits of it.

    The two products of `_gradient` nearly cancel: 8 bits alone would lose the gradient of a student near the teacher.
    """
    high = wide.to(narrow.dtype)
    low = (wide - high).to(narrow.dtype)
    product = torch.bmm(narrow, high, out_dtype=torch.float32)
    return product.add_(torch.bmm(narrow, low, out_dtype=torch.float32))
