"""`score_mse` by blocks of full score rows, in plain torch: for sequences too short for the closed form.

The difference D of the scores comes out of one accumulator, so nothing cancels when the student is near the teacher.

Shapes: B batch, L length, l valid positions of one sequence, H heads, h heads and m rows of a block, d head size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kd_megatron.kernels.arithmetic import Pair, accumulation_dtype, split_heads
from kd_megatron.kernels.autograd import Gradients, differentiable, new_gradients

BLOCK_ROWS = 64
BLOCK_ELEMENTS = 2**17  # of D: half a MiB in float32, which stays in the cache


@differentiable
def score_mse(
    student: Pair, teacher: Pair, num_heads: int, valid: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor, Gradients]:
    """Sum of squared differences of the scaled scores before softmax, over valid pairs and heads."""
    taps = (*student, *teacher)
    dtype = accumulation_dtype(*taps)
    heads = [split_heads(tap, num_heads) for tap in taps]  # [B, H, L, d]
    gradients = new_gradients(student, wanted, dtype)
    loss = torch.zeros((), dtype=torch.float64, device=student[0].device)
    for sequence in range(len(student[0])):
        # [l] int64: what counts of the sequence; None: all of it
        positions = None if valid is None or valid[sequence].all() else valid[sequence].nonzero().squeeze(1)
        rows = [_rows(x[sequence], positions, dtype) for x in heads]  # [H, l, d]
        row_gradients = [x.new_empty(x.shape) if want else None for x, want in zip(rows, wanted, strict=False)]
        loss += _sequence(*rows, *row_gradients)
        for gradient, values in zip(gradients, row_gradients, strict=True):
            if gradient is not None and values is not None:
                _store(split_heads(gradient[sequence, None], num_heads)[0], values, positions)
    return loss.to(dtype), gradients


def _rows(heads: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The positions that count of [H, L, d], widened; the tap itself, strided, where there is nothing to do."""
    return (heads if positions is None else heads.index_select(1, positions)).to(dtype)


def _store(gradient: Tensor, values: Tensor, positions: Tensor | None) -> None:
    """Into [H, L, d]; padding gets zeros."""
    if positions is None:
        gradient.copy_(values)
    else:
        gradient.zero_().index_copy_(1, positions, values)


def _sequence(
    student_queries: Tensor,
    student_keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    query_gradient: Tensor | None,
    key_gradient: Tensor | None,
) -> Tensor:
    """The loss of one sequence; every tensor is [H, l, d], and the gradients are written."""
    num_heads, length, student_size = student_queries.shape
    student_scale, teacher_scale = student_size**-0.5, teacher_queries.shape[-1] ** -0.5
    loss = torch.zeros((), dtype=torch.float64, device=student_queries.device)
    workspace = student_queries.new_empty(max(BLOCK_ELEMENTS, BLOCK_ROWS * length))
    for some, first in _blocks(num_heads, length):
        block = slice(first, first + BLOCK_ROWS)
        queries, keys = student_queries[some], student_keys[some]
        rows = queries[:, block]  # [h, m, d_s]
        difference = workspace[: rows.shape[0] * rows.shape[1] * length].view(*rows.shape[:2], length)
        _product(teacher_queries[some, block], teacher_keys[some].mT, -teacher_scale, difference)
        _product(rows, keys.mT, student_scale, difference, add=True)
        if query_gradient is not None:
            _product(difference, keys, 2.0 * student_scale, query_gradient[some, block])
        if key_gradient is not None:
            _product(difference.mT, rows, 2.0 * student_scale, key_gradient[some], add=first > 0)
        loss += difference.square_().sum()
    return loss


def _blocks(num_heads: int, length: int) -> Iterator[tuple[slice, int]]:
    """Heads, and the first of `BLOCK_ROWS` rows; all rows of the same heads follow each other."""
    num_together = max(1, BLOCK_ELEMENTS // max(1, min(BLOCK_ROWS, length) * length))
    for head in range(0, num_heads, num_together):
        for first in range(0, length, BLOCK_ROWS):
            yield slice(head, head + num_together), first


def _product(left: Tensor, right: Tensor, scale: float, into: Tensor, add: bool = False) -> None:
    """``into = scale * left @ right``, or added to it."""
    torch.baddbmm(into, left, right, beta=float(add), alpha=scale, out=into)
