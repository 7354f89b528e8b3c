"""The two sums as one differentiable function; how its rows are gone through is a backend's. README.md derives it.

Shapes: N rows, C rows of a chunk, D hidden size (of either model), V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.arithmetic import accumulation_dtype, products_of_bfloat16
from kd_megatron.kernels.autograd import scaled
from kd_megatron.kernels.vocab_kl.block import TopRows, Use
from kd_megatron.kernels.vocab_kl.products import Gradient, Head
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

PROMISE_RELATIVE = 1e-3  # how far the gradients of the two sums may be from the promised proportion

# Takes the student, the teacher's logits or known outcomes (of both a slice of rows is asked), the use of rows, and the
# gradient, to which it adds. Returns divergence and cross-entropy of every row, [2, N], 0 where one does not use it.
RowLosses = Callable[[Head, Head | TopRows | None, Use, Gradient], Tensor]


class Backend(NamedTuple):
    """How rows are gone through."""

    chunk_rows: int  # the most that are multiplied out at once
    row_losses: RowLosses


def both_sums(
    backend: Backend,
    student: FactoredLogits,
    teacher: FactoredLogits | TopLogits | None,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums; their gradient is good for multiples of their combination by ``gradient_weights``."""
    tensors: list[Tensor | None] = [student.states, student.weight, student.bias]
    if not torch.is_grad_enabled():  # the Function cannot tell: gradients are always off in its forward
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    return _VocabularyLosses.apply(*tensors, backend, teacher, labels, temperature, kl_rows, gradient_weights)


def cross_entropy_sum(backend: Backend, student: FactoredLogits, labels: Tensor) -> Tensor:
    """The cross-entropy alone: the same pass without a teacher."""
    no_rows = torch.zeros_like(labels, dtype=torch.bool)
    return both_sums(backend, student, None, labels, 1.0, no_rows, (0.0, 1.0))[1]


class _VocabularyLosses(torch.autograd.Function):
    """Divergence and cross-entropy; the gradient of a * divergence + b * cross-entropy is made in the forward.

    Logits are then needed once, and nothing of their size waits for the backward, which multiplies by one number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,  # [N, D]
        weight: Tensor,  # [V, D]
        bias: Tensor | None,  # [V]
        backend: Backend,
        teacher: FactoredLogits | TopLogits | None,
        labels: Tensor,  # [N]
        temperature: float,
        kl_rows: Tensor,  # [N]
        gradient_weights: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        student = FactoredLogits(states, weight, bias)
        dtype = accumulation_dtype(*tensors_of(student), *tensors_of(teacher))
        student_head = Head(student, kl_rows | (labels != IGNORED), dtype, backend.chunk_rows)
        teacher_side: Head | TopRows | None = None  # of which a slice of rows is asked: logits, or the known outcomes
        if isinstance(teacher, TopLogits):
            teacher_side = TopRows.of(teacher, kl_rows, dtype)
        elif teacher is not None:
            teacher_side = Head(teacher, kl_rows, dtype, backend.chunk_rows)
        use = Use(labels, kl_rows, temperature, gradient_weights)
        gradient = Gradient(student, ctx.needs_input_grad[:3], dtype, backend.chunk_rows)
        multiplied = [*tensors_of(student), *(tensors_of(teacher) if isinstance(teacher, FactoredLogits) else ())]
        with products_of_bfloat16(*multiplied):
            row_losses = backend.row_losses(student_head, teacher_side, use, gradient)
        ctx.save_for_backward(gradient.states, gradient.weight, gradient.bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (states, weight, bias)]
        ctx.gradient_weights = gradient_weights
        ctx.is_promise = teacher is not None  # else the divergence is handed to nobody
        return row_losses[0].sum(), row_losses[1].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_divergence: Tensor, grad_cross_entropy: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_cross_entropy
        if ctx.is_promise:
            factor = _promised_factor(grad_divergence, grad_cross_entropy, ctx.gradient_weights)
        return (*scaled(ctx.saved_tensors, factor, ctx.dtypes), None, None, None, None, None, None)


def tensors_of(logits: FactoredLogits | TopLogits | None) -> list[Tensor]:
    """The tensors of which logits are made."""
    if isinstance(logits, FactoredLogits):
        return [tensor for tensor in (logits.states, logits.weight, logits.bias) if tensor is not None]
    return [] if logits is None else [logits.log_probabilities, logits.log_rest]


def _promised_factor(grad_divergence: Tensor, grad_cross_entropy: Tensor, weights: tuple[float, float]) -> Tensor:
    """The factor f of gradients (f * a, f * b); an error when there is none, on a GPU without waiting for it."""
    a, b = weights
    squares = a * a + b * b
    factor = torch.add(grad_divergence * (a / (squares or 1.0)), grad_cross_entropy, alpha=b / (squares or 1.0))
    if squares:  # beside the promised direction: sqrt(squares) times what is perpendicular to it
        beside = torch.sub(grad_divergence * b, grad_cross_entropy, alpha=a)
        broken = beside.abs() > PROMISE_RELATIVE * squares * factor.abs()
    else:
        broken = grad_divergence.abs() + grad_cross_entropy.abs() > 0.0
    says = f"gradient_weights is ({a:g}, {b:g}): the promise to use the sums as factor * ({a:g} * kl + {b:g} * ce)"
    if broken.device.type != "cpu":
        torch._assert_async(~broken, f"{says}, but their gradients are in another proportion")
    elif broken:
        raise ValueError(
            f"{says}, but their gradients are {grad_divergence.item():g} and {grad_cross_entropy.item():g}; "
            "allowed: gradients in that proportion (backend 'reference' takes any)"
        )
    return factor
