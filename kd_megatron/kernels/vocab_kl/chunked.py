"""All three doors by chunks of rows: losses and gradients in one pass, pure torch, any device. README.md derives it.

Shapes: N rows, C rows of a chunk, R rows of a block, D hidden size (of either model), V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_megatron.kernels.arithmetic import accumulation_dtype, products_of_bfloat16
from kd_megatron.kernels.autograd import scaled
from kd_megatron.kernels.vocab_kl.block import Targets, TopRows, losses_of_logits, losses_of_top
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

CHUNK_ROWS = 256  # multiplied out at once: enough for matrix products at nearly full speed, see README.md
CPU_BLOCK_ROWS = 16  # of a chunk, turned from logits to gradient at once: they stay in cache, and one buffer is small
ROW_ALIGNMENT = 64  # elements: rows of 30,522 without a gap start anywhere, and the product that writes them is slower
PROMISE_RELATIVE = 1e-3  # how far the gradients of the two sums may be from the promised proportion


def vocab_kl(
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
    return _VocabularyLosses.apply(*tensors, teacher, labels, temperature, kl_rows, gradient_weights)


def vocab_topk_kl(
    student: FactoredLogits,
    teacher: TopLogits,
    labels: Tensor,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums, as `vocab_kl`; the teacher's logits are not multiplied out."""
    return vocab_kl(student, teacher, labels, teacher.temperature, kl_rows, gradient_weights)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor) -> Tensor:
    """The cross-entropy alone: the same pass without a teacher."""
    no_rows = torch.zeros_like(labels, dtype=torch.bool)
    return vocab_kl(student, None, labels, 1.0, no_rows, (0.0, 1.0))[1]


def logits_by_chunk(head: FactoredLogits) -> Iterator[Tensor]:
    """The logits of all rows in order, [C, V] each and one at least, in full precision; each overwrites the last."""
    num_rows, dtype = head.states.shape[0], accumulation_dtype(*_factors(head))
    of_head = _Head(head, torch.ones(num_rows, dtype=torch.bool, device=head.states.device), dtype)
    return (of_head[chunk] for chunk in _slices(0, max(1, num_rows), CHUNK_ROWS))


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
        teacher: FactoredLogits | TopLogits | None,
        labels: Tensor,  # [N]
        temperature: float,
        kl_rows: Tensor,  # [N]
        gradient_weights: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        student = FactoredLogits(states, weight, bias)
        dtype = accumulation_dtype(*_factors(student), *_factors(teacher))
        labelled = labels != IGNORED
        student_head = _Head(student, kl_rows | labelled, dtype)
        teacher_side: _Head | TopRows | None = None  # of which a slice of rows is asked: logits, or the known outcomes
        if isinstance(teacher, TopLogits):
            teacher_side = TopRows.of(teacher, kl_rows, dtype)
        elif teacher is not None:
            teacher_side = _Head(teacher, kl_rows, dtype)
        targets = Targets(
            labels.masked_fill(~labelled, 0)[:, None],
            divergence=kl_rows.to(dtype)[:, None] * (gradient_weights[0] / temperature),
            cross_entropy=labelled.to(dtype)[:, None] * gradient_weights[1],
        )
        gradient = _Gradient(student, ctx.needs_input_grad[:3], dtype, student_head.weight.dtype)
        with products_of_bfloat16(*_factors(student)):
            divergence, cross_entropy = _row_losses(student_head, teacher_side, targets, temperature, gradient)
        ctx.save_for_backward(gradient.states, gradient.weight, gradient.bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (states, weight, bias)]
        ctx.gradient_weights = gradient_weights
        return divergence.masked_fill(~kl_rows, 0.0).sum(), cross_entropy.masked_fill(~labelled, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_divergence: Tensor, grad_cross_entropy: Tensor) -> tuple[Tensor | None, ...]:
        factor = _promised_factor(grad_divergence, grad_cross_entropy, ctx.gradient_weights)
        return (*scaled(ctx.saved_tensors, factor, ctx.dtypes), None, None, None, None, None)


def _factors(logits: FactoredLogits | TopLogits | None) -> list[Tensor]:
    """The tensors of which logits are made."""
    if isinstance(logits, FactoredLogits):
        return [tensor for tensor in (logits.states, logits.weight, logits.bias) if tensor is not None]
    return [] if logits is None else [logits.log_probabilities, logits.log_rest]


def _promised_factor(grad_divergence: Tensor, grad_cross_entropy: Tensor, weights: tuple[float, float]) -> Tensor:
    """The factor f of gradients (f * a, f * b); an error when there is none, on a GPU without waiting for it."""
    a, b = weights
    factor = (grad_divergence * a + grad_cross_entropy * b) / (a * a + b * b or 1.0)
    distance = (grad_divergence - factor * a).abs() + (grad_cross_entropy - factor * b).abs()
    broken = distance > PROMISE_RELATIVE * (grad_divergence.abs() + grad_cross_entropy.abs())
    says = f"gradient_weights is ({a:g}, {b:g}): the promise to use the sums as factor * ({a:g} * kl + {b:g} * ce)"
    if broken.device.type != "cpu":
        torch._assert_async(~broken, f"{says}, but their gradients are in another proportion")
    elif broken:
        raise ValueError(
            f"{says}, but their gradients are {grad_divergence.item():g} and {grad_cross_entropy.item():g}; "
            "allowed: gradients in that proportion (backend 'reference' takes any)"
        )
    return factor


class _Head:
    """The head of one model, with the memory into which its logits are multiplied out, chunk after chunk."""

    def __init__(self, logits: FactoredLogits, used: Tensor, dtype: torch.dtype) -> None:
        factors_dtype = _factors_dtype(logits, dtype)
        self._states, self._used = logits.states, used
        self.weight = logits.weight.to(factors_dtype)  # a copy, for the length of the call, only where it is widened
        self._bias = None if logits.bias is None else logits.bias.to(dtype)
        self._logits = _rows_of_vocabulary(CHUNK_ROWS, logits.weight, dtype)

    def states(self, chunk: slice) -> Tensor:
        """[C, D]: zeros at rows not used, whatever stands there."""
        return self._states[chunk].masked_fill(~self._used[chunk, None], 0.0).to(self.weight.dtype)

    def __getitem__(self, chunk: slice) -> Tensor:
        """The logits of rows, [C, V]."""
        return self.logits(self.states(chunk))

    def logits(self, states: Tensor) -> Tensor:
        """[C, V], in the same memory at every call."""
        logits = self._logits[: states.shape[0]]
        logits.zero_() if self._bias is None else logits.copy_(self._bias)
        _add_product(logits, states, self.weight.t())
        return logits


class _Gradient:
    """Gradient of the student's tensors, in full precision; None for those that need none."""

    def __init__(
        self, student: FactoredLogits, needed: tuple[bool, bool, bool], dtype: torch.dtype, factors_dtype: torch.dtype
    ) -> None:
        self.states, self.weight, self.bias = (
            torch.zeros_like(tensor, dtype=dtype) if need and tensor is not None else None
            for tensor, need in zip((student.states, student.weight, student.bias), needed, strict=True)
        )
        self.needed = any(needed)
        is_narrow = self.needed and factors_dtype != dtype
        self._narrow = _rows_of_vocabulary(CHUNK_ROWS, student.weight, factors_dtype) if is_narrow else None

    def add(self, chunk: slice, logits_gradient: Tensor, states: Tensor, weight: Tensor) -> None:
        """Add what a chunk contributes: its logits' gradient [C, V] through ``states @ weight^T + bias``."""
        if self.bias is not None:
            self.bias += logits_gradient.sum(0)
        narrow = self._narrow
        factor = logits_gradient if narrow is None else narrow[: states.shape[0]].copy_(logits_gradient)
        if self.states is not None:
            _add_product(self.states[chunk], factor, weight)
        if self.weight is not None:
            _add_product(self.weight, factor.t(), states)


def _factors_dtype(logits: FactoredLogits, dtype: torch.dtype) -> torch.dtype:
    """bfloat16 where a product of such matrices can be summed in float32: on a GPU; otherwise ``dtype`` itself."""
    is_bfloat16 = logits.states.dtype == logits.weight.dtype == torch.bfloat16
    return torch.bfloat16 if logits.weight.is_cuda and is_bfloat16 and dtype == torch.float32 else dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, summed in the dtype of ``total`` also when the factors are narrower."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _rows_of_vocabulary(num_rows: int, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for [num_rows, V], of one size whatever the batch holds: an allocator can give the same again."""
    vocab_size = weight.shape[0]
    padded_size = -(-vocab_size // ROW_ALIGNMENT) * ROW_ALIGNMENT
    return torch.empty(num_rows, padded_size, dtype=dtype, device=weight.device)[:, :vocab_size]


def _row_losses(
    student: _Head, teacher: _Head | TopRows | None, targets: Targets, temperature: float, gradient: _Gradient
) -> Tensor:
    """Divergence and cross-entropy of every row, [2, N], of no meaning where a loss does not use the row."""
    losses: Any = losses_of_top if isinstance(teacher, TopRows) else losses_of_logits
    num_rows, dtype = targets.labels.shape[0], targets.cross_entropy.dtype
    num_block_rows = CHUNK_ROWS if student.weight.is_cuda else CPU_BLOCK_ROWS  # a GPU wants few, large launches
    spare = _rows_of_vocabulary(num_block_rows, student.weight, dtype)
    row_losses = torch.empty(2, num_rows, dtype=dtype, device=student.weight.device)
    for chunk in _slices(0, num_rows, CHUNK_ROWS):
        states = student.states(chunk)
        logits = student.logits(states)
        of_teacher = None if teacher is None else teacher[chunk]
        for block in _slices(chunk.start, chunk.stop, num_block_rows):
            inside = slice(block.start - chunk.start, block.stop - chunk.start)
            row_losses[0, block], row_losses[1, block], distributions = losses(
                logits[inside],
                None if of_teacher is None else of_teacher[inside],
                spare[: block.stop - block.start],
                targets.labels[block],
                temperature,
            )
            if gradient.needed:
                distributions.put_gradient(targets[block])
        if gradient.needed:
            gradient.add(chunk, logits, states, student.weight)
    return row_losses


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` rows from ``start`` to ``stop``; the last may be shorter."""
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
