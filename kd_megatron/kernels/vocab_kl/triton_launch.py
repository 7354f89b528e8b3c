"""All three doors on a GPU: the kernels of triton_kernels.py between the products of large chunks of rows.

Shapes: N rows, C rows of a chunk, D hidden size, V vocabulary, P elements from a row of logits to the next.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kd_megatron.kernels.triton_tools import INTERPRETED
from kd_megatron.kernels.vocab_kl.block import Targets, TopRows
from kd_megatron.kernels.vocab_kl.function import Backend, both_sums, cross_entropy_sum
from kd_megatron.kernels.vocab_kl.products import Gradient, Head, slices
from kd_megatron.kernels.vocab_kl.triton_kernels import cross_entropy_rows, divergence_rows, top_divergence_rows
from kd_megatron.tensors import FactoredLogits, TopLogits

MOST_CHUNK_ROWS = 4096  # the gradient of the weight, 4 V D bytes, is read and written once a chunk: README.md, cost
CHUNK_ALIGNMENT = 64  # rows: a tile of the products that sum over rows
TILE = 4096  # tokens of a row at once, 8 in a thread
TILE_OF_BOTH = 2048  # of two models: a multiprocessor still holds the registers of two programs
NUM_WARPS = 16


def vocab_kl(
    student: FactoredLogits,
    teacher: FactoredLogits,
    labels: Tensor,
    temperature: float,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums; their gradient is good for multiples of their combination by ``gradient_weights``."""
    return both_sums(_backend(labels), student, teacher, labels, temperature, kl_rows, gradient_weights)


def vocab_topk_kl(
    student: FactoredLogits,
    teacher: TopLogits,
    labels: Tensor,
    kl_rows: Tensor,
    gradient_weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Both sums, as `vocab_kl`; the teacher's logits are not multiplied out."""
    return both_sums(_backend(labels), student, teacher, labels, teacher.temperature, kl_rows, gradient_weights)


def vocab_cross_entropy(student: FactoredLogits, labels: Tensor) -> Tensor:
    """The cross-entropy alone: the same pass without a teacher."""
    return cross_entropy_sum(_backend(labels), student, labels)


def _backend(labels: Tensor) -> Backend:
    """Chunks of about one size, none larger than `MOST_CHUNK_ROWS`."""
    num_rows = max(1, labels.shape[0])
    chunk_rows = triton.cdiv(num_rows, triton.cdiv(num_rows, MOST_CHUNK_ROWS))
    return Backend(triton.cdiv(chunk_rows, CHUNK_ALIGNMENT) * CHUNK_ALIGNMENT, _row_losses)


def _row_losses(
    student: Head, teacher: Head | TopRows | None, targets: Targets, temperature: float, gradient: Gradient
) -> Tensor:
    """Divergence and cross-entropy of every row, [2, N], of no meaning where a loss does not use the row."""
    num_rows = targets.labels.shape[0]
    row_losses = torch.zeros(2, num_rows, dtype=student.dtype, device=student.weight.device)
    student_bias = student.padded_bias()
    teacher_bias = teacher.padded_bias() if isinstance(teacher, Head) else None
    for chunk in slices(0, num_rows, student.chunk_rows):
        states = student.states(chunk)
        logits = student.without_bias(states)
        logits_gradient = _place_of_gradient(gradient, logits)
        known, losses = targets[chunk], row_losses[:, chunk]
        if isinstance(teacher, TopRows):
            launch_top(logits, student_bias, teacher[chunk], known, temperature, losses, logits_gradient)
        elif teacher is not None:
            of_teacher = teacher.without_bias(teacher.states(chunk))
            sides = (logits, student_bias, of_teacher, teacher_bias)
            launch_divergence(sides, known, temperature, losses, logits_gradient)
        else:
            launch_cross_entropy(logits, student_bias, known, losses, logits_gradient)
        if logits_gradient is not None:
            gradient.add(chunk, logits_gradient, states, student.weight)
    return row_losses


def _place_of_gradient(gradient: Gradient, logits: Tensor) -> Tensor | None:
    """Where the kernel writes the gradient of ``logits`` [C, V]: as the products take it, or over the logits."""
    if not gradient.needed:
        return None
    # The interpreter's conversion to bf16 truncates: there, torch rounds.
    return logits if gradient.narrow is None or INTERPRETED else gradient.narrow[: logits.shape[0]]


def launch_cross_entropy(
    logits: Tensor, bias: Tensor | None, targets: Targets, losses: Tensor, gradient: Tensor | None
) -> None:
    """Both passes over the rows of ``logits`` [C, V], of which the cross-entropy goes to ``losses[1]`` [C]."""
    arguments = (logits, bias, targets.labels, targets.cross_entropy, losses[1], gradient)
    _launch(cross_entropy_rows, TILE, logits, arguments, ())


def launch_divergence(
    sides: tuple[Tensor, Tensor | None, Tensor, Tensor | None],  # logits and bias of the student, and of the teacher
    targets: Targets,
    temperature: float,
    losses: Tensor,
    gradient: Tensor | None,
) -> None:
    """Both passes over the logits of both models; divergence and cross-entropy go to ``losses`` [2, C]."""
    weights = (targets.labels, targets.divergence, targets.cross_entropy)
    arguments = (*sides, *weights, losses[0], losses[1], gradient)
    _launch(divergence_rows, TILE_OF_BOTH, sides[0], arguments, (), INVERSE_TEMPERATURE=1.0 / temperature)


def launch_top(
    logits: Tensor,
    bias: Tensor | None,
    teacher: TopRows,
    targets: Targets,
    temperature: float,
    losses: Tensor,
    gradient: Tensor | None,
) -> None:
    """As `launch_divergence`, over the outcomes that ``teacher`` knows. The known tokens' logits are overwritten."""
    num_kept = teacher.token_ids.shape[1]
    weights = (targets.labels, targets.divergence, targets.cross_entropy)
    known = (teacher.token_ids, teacher.log_probabilities)
    arguments = (logits, bias, *known, *weights, losses[0], losses[1], gradient)
    constants = {"INVERSE_TEMPERATURE": 1.0 / temperature, "KEPT": triton.next_power_of_2(num_kept)}
    _launch(top_divergence_rows, TILE, logits, arguments, (num_kept,), **constants)


def _launch(
    kernel: Any, tile: int, logits: Tensor, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], **constants: Any
) -> None:
    """One program for each row of ``logits`` [C, V]."""
    num_rows, vocab_size = logits.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        kernel[(num_rows,)](
            *tensors,
            logits.stride(0),
            vocab_size,
            *sizes,
            **constants,
            TILE=min(tile, triton.next_power_of_2(vocab_size)),
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,  # said outright: Triton 3.10 turns the default round
        )
