"""`relation_kl` in plain torch, block by block: nothing of size L x L is stored. The backend of CPUs.

Loss and gradient are made in one pass, as long as a block of scores is in the cache: backward only scales. The
derivation is in README.md.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads; a block has h heads and
m rows of the N valid positions of a sequence. Scores are in units of log2(e): exp2 is cheaper than exp.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kd_megatron.kernels.arithmetic import accumulation_dtype, split_heads
from kd_megatron.kernels.autograd import Gradients, differentiable

BLOCK_ROWS = 64  # the most rows m of a block: what memory is linear in L for
BLOCK_ELEMENTS = 2**19  # h * m * N aims here: three buffers of 2 MiB; measured best, README.md

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


def relation_kl(
    student: Sequence[Tensor], teacher: Sequence[Tensor], num_relation_heads: int, valid: Tensor | None
) -> Tensor:
    """[n]: sums over valid query rows and relation heads of KL(teacher's relation || student's relation)."""
    pairs = zip(student, teacher, strict=True)
    # One by one, so that backward frees what one relation has saved before it makes the next one's gradient.
    return torch.stack([_of_one_relation((s,), t, num_relation_heads, valid) for s, t in pairs])


@differentiable
def _of_one_relation(
    taps: tuple[Tensor], teacher: Tensor, num_relation_heads: int, valid: Tensor | None, wanted: tuple[bool]
) -> tuple[Tensor, Gradients]:
    """The sum of one relation, a scalar, and its gradient [B, L, H, d], 0 at padding."""
    (student,) = taps
    dtype, length = accumulation_dtype(student, teacher), student.shape[1]
    student_heads, teacher_heads = (split_heads(tap, num_relation_heads) for tap in (student, teacher))  # [B, R, L, d]
    workspace = student.new_empty(3 * max(BLOCK_ELEMENTS, BLOCK_ROWS * length), dtype=dtype)
    total = student.new_zeros((), dtype=torch.float64)  # block sums are float32, and there may be very many
    gradient = student.new_zeros(student.shape, dtype=dtype) if wanted[0] else None
    for sequences, heads, positions in _groups(student_heads.shape, valid):
        x_student = _take(student_heads[sequences, heads], positions, dtype)
        x_teacher = _take(teacher_heads[sequences, heads], positions, dtype)
        x_gradient = None if gradient is None else torch.zeros_like(x_student)
        total += _sum_of_group(x_student, x_teacher, x_gradient, workspace)
        if gradient is not None and x_gradient is not None:
            _put(split_heads(gradient, num_relation_heads)[sequences, heads], positions, x_gradient)
    return (total * LN_2).to(dtype), [gradient]


def _groups(shape: torch.Size, valid: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """What is worked on together, of relation heads [B, R, L, d]: sequences, heads, valid positions [N] (None: all).

    A group is made of valid positions alone, so that what follows knows no mask; a padded batch goes one by one.
    """
    num_sequences, num_heads, length, _ = shape
    padding = None if valid is None or bool(valid.all()) else valid
    for sequences in _slices(num_sequences, _most_heads(length) // num_heads if padding is None else 1):
        positions = None if padding is None else padding[sequences.start].nonzero().squeeze(1)
        num_positions = length if positions is None else len(positions)
        for heads in _slices(num_heads, _most_heads(num_positions)):
            yield sequences, heads, positions


def _most_heads(num_positions: int) -> int:
    """How many heads' blocks make `BLOCK_ELEMENTS`; 0 where not even one."""
    return BLOCK_ELEMENTS // max(1, num_positions * min(num_positions, BLOCK_ROWS))


def _sum_of_group(x_student: Tensor, x_teacher: Tensor, x_gradient: Tensor | None, workspace: Tensor) -> Tensor:
    """The sum of some heads, [h, N, d] each, in units of log2(e). Adds their gradient to ``x_gradient`` [h, N, d_s]."""
    num_heads, num_positions, student_size = x_student.shape
    total = x_student.new_zeros((), dtype=torch.float64)
    for rows in _slices(num_positions, BLOCK_ROWS):
        shape = (3, num_heads, rows.stop - rows.start, num_positions)
        buffers = workspace[: math.prod(shape)].view(shape)
        scores, log_ratio = buffers[:2], buffers[2]  # [2, h, m, N]: the student's and the teacher's; [h, m, N]
        for x, out in zip((x_student, x_teacher), scores, strict=True):
            torch.baddbmm(out, x[:, rows], x.mT, beta=0.0, alpha=LOG2_E * x.shape[-1] ** -0.5, out=out)
        scores -= scores.amax(-1, keepdim=True)
        torch.sub(scores[1], scores[0], out=log_ratio)
        exponentials = scores.exp2_()
        sums = exponentials.sum(-1, keepdim=True)  # [2, h, m, 1]
        weighted = log_ratio.mul_(exponentials[1]).sum(-1, keepdim=True)  # [h, m, 1]
        total += (weighted / sums[1] + (sums[0] / sums[1]).log2()).sum()
        if x_gradient is not None:
            inverse = sums.reciprocal()
            difference = exponentials[0].mul_(inverse[0]).addcmul_(exponentials[1], inverse[1], value=-1.0)  # P_s - P_t
            x_gradient[:, rows].add_(difference @ x_student, alpha=student_size**-0.5)
            x_gradient.baddbmm_(difference.mT, x_student[:, rows], alpha=student_size**-0.5)
    return total


def _take(heads: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The valid positions of the heads of a group, [b, h, L, d], one head after another: [b * h, N, d], contiguous."""
    taken = heads if positions is None else heads.index_select(2, positions)
    return taken.to(dtype).contiguous().flatten(0, 1)


def _put(heads: Tensor, positions: Tensor | None, values: Tensor) -> None:
    """Write ``values`` [b * h, N, d] where `_take` read."""
    values = values.unflatten(0, heads.shape[:2])
    if positions is None:
        heads.copy_(values)
    else:
        heads.index_copy_(2, positions, values)


def _slices(total: int, most: int) -> Iterator[slice]:
    """The range of ``total`` in as few even slices as hold ``most`` each, or 1 where ``most`` is 0."""
    num_slices = math.ceil(total / max(1, most))
    size = math.ceil(total / max(1, num_slices))
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))
