"""All three doors by chunks of rows: losses and gradients in one pass, pure torch, any device. README.md derives it.

Shapes: N rows, C rows of a chunk, R rows of a block, D hidden size (of either model), V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.kernels.vocab_kl.block import Targets, TopRows, Use, losses_of_logits, losses_of_top
from kd_megatron.kernels.vocab_kl.function import Backend, both_sums, cross_entropy_sum, tensors_of
from kd_megatron.kernels.vocab_kl.products import Gradient, Head, rows_of_vocabulary, slices
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

CHUNK_ROWS = 256  # multiplied out at once: enough for matrix products at nearly full speed, see README.md
CPU_BLOCK_ROWS = 16  # of a chunk, turned from logits to gradient at once: they stay in cache, and one buffer is small


def vocab_kl(
    student: FactoredLogits,
    teacher: FactoredLogits,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums; their gradient is good for multiples of their combination by ``gradient_weights``."""
    return both_sums(_backend(), student, teacher, labels, temperature, kl_rows, gradient_weights)


def vocab_topk_kl(
    student: FactoredLogits,
    teacher: TopLogits,
    labels: Tensor,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums, as `vocab_kl`; the teacher's logits are not multiplied out."""
    return both_sums(_backend(), student, teacher, labels, teacher.temperature, kl_rows, gradient_weights)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor) -> Tensor:
    """The cross-entropy alone: the same pass without a teacher."""
    return cross_entropy_sum(_backend(), student, labels)


def logits_by_chunk(head: FactoredLogits) -> Iterator[Tensor]:
    """The logits of all rows in order, [C, V] each and one at least, in full precision; each overwrites the last."""
    num_rows, dtype = head.states.shape[0], accumulation_dtype(*tensors_of(head))
    of_head = Head(head, torch.ones(num_rows, dtype=torch.bool, device=head.states.device), dtype, CHUNK_ROWS)
    return (of_head[chunk] for chunk in slices(0, max(1, num_rows), CHUNK_ROWS))


def _backend() -> Backend:
    return Backend(CHUNK_ROWS, _row_losses)


def _row_losses(student: Head, teacher: Head | TopRows | None, use: Use, gradient: Gradient) -> Tensor:
    """Divergence and cross-entropy of every row, [2, N], 0 where one does not use it."""
    losses: Any = losses_of_top if isinstance(teacher, TopRows) else losses_of_logits
    num_rows, dtype = use.labels.shape[0], student.dtype
    targets = Targets.of(use, dtype)
    num_block_rows = CHUNK_ROWS if student.weight.is_cuda else CPU_BLOCK_ROWS  # a GPU wants few, large launches
    spare = rows_of_vocabulary(num_block_rows, student.weight, dtype)
    row_losses = torch.empty(2, num_rows, dtype=dtype, device=student.weight.device)
    for chunk in slices(0, num_rows, CHUNK_ROWS):
        states = student.states(chunk)
        logits = student.logits(states)
        of_teacher = None if teacher is None else teacher[chunk]
        for block in slices(chunk.start, chunk.stop, num_block_rows):
            inside = slice(block.start - chunk.start, block.stop - chunk.start)
            row_losses[0, block], row_losses[1, block], distributions = losses(
                logits[inside],
                None if of_teacher is None else of_teacher[inside],
                spare[: block.stop - block.start],
                targets.labels[block],
                use.temperature,
            )
            if gradient.needed:
                distributions.put_gradient(targets[block])
        if gradient.needed:
            gradient.add(chunk, logits, states, student.weight)
    return row_losses.masked_fill_(~torch.stack([use.kl_rows, use.labels != IGNORED]), 0.0)
