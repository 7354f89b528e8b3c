"""All three doors on a GPU: the kernels of triton_kernels.py between the products of large chunks of rows.

Shapes: N rows, C rows of a chunk, D hidden size, V vocabulary, P elements from a row of logits to the next.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kd_megatron.kernels.triton_tools import INTERPRETED
from kd_megatron.kernels.vocab_kl.block import TopRows, Use
from kd_megatron.kernels.vocab_kl.function import Backend, both_sums, cross_entropy_sum
from kd_megatron.kernels.vocab_kl.products import Gradient, Head, slices
from kd_megatron.kernels.vocab_kl.triton_kernels import cross_entropy_rows, divergence_rows, top_divergence_rows
from kd_megatron.tensors import FactoredLogits, TopLogits

MOST_CHUNK_ROWS = 4096  # the gradient of the weight, 4 V D bytes, is read and written once a chunk: README.md, cost
CHUNK_ALIGNMENT = 64  # rows: a tile of the products that sum over rows
TILE = 4096  # tokens of a row at once, 8 in a thread
TILE_OF_BOTH = 2048  # of two models: a multiprocessor still holds the registers of two programs
NUM_WARPS = 16


class Results(NamedTuple):
    """What a launch writes for the C rows of a chunk."""

    divergences: Tensor  # [C], not written without a teacher
    cross_entropies: Tensor  # [C]
    gradient: Tensor | None  # of the logits, [C, V]; None: not wanted


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


def _row_losses(student: Head, teacher: Head | TopRows | None, use: Use, gradient: Gradient) -> Tensor:
    """Divergence and cross-entropy of every row, [2, N], 0 where one does not use it."""
    every = slice(0, use.labels.shape[0])
    make = torch.zeros if teacher is None else torch.empty
    row_losses = make(2, every.stop, dtype=student.dtype, device=student.weight.device)
    all_states, student_bias = student.states(every), student.padded_bias()
    if isinstance(teacher, Head):
        all_teacher_states, teacher_bias = teacher.states(every), teacher.padded_bias()
    for chunk in slices(0, every.stop, student.chunk_rows):
        states = all_states[chunk]
        logits = student.without_bias(states)
        chunk_use = use[chunk]
        results = Results(row_losses[0, chunk], row_losses[1, chunk], _place_of_gradient(gradient, logits))
        if teacher is None:
            launch_cross_entropy(logits, student_bias, chunk_use, results)
        elif isinstance(teacher, TopRows):
            launch_top(logits, student_bias, teacher[chunk], chunk_use, results)
        else:
            of_teacher = teacher.without_bias(all_teacher_states[chunk])
            launch_divergence(logits, student_bias, of_teacher, teacher_bias, chunk_use, results)
        if results.gradient is not None:
            gradient.add(chunk, results.gradient, states, student.weight)
    return row_losses


def _place_of_gradient(gradient: Gradient, logits: Tensor) -> Tensor | None:
    """Where the kernel writes the gradient of ``logits`` [C, V]: as the products take it, or over the logits."""
    if not gradient.needed:
        return None
    # The interpreter's conversion to bf16 truncates: there, torch rounds.
    return logits if gradient.narrow is None or INTERPRETED else gradient.narrow[: logits.shape[0]]


def launch_cross_entropy(logits: Tensor, bias: Tensor | None, use: Use, results: Results) -> None:
    """Both passes over the rows of ``logits`` [C, V], without a teacher."""
    tensors = (logits, bias, use.labels, *results[1:])
    _launch(cross_entropy_rows, TILE, logits, tensors, use.of_logits[1:])


def launch_divergence(
    student: Tensor,
    student_bias: Tensor | None,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    use: Use,
    results: Results,
) -> None:
    """Both passes over the rows of both models' logits [C, V]."""
    tensors = (student, student_bias, teacher, teacher_bias, use.labels, use.kl_rows, *results)
    _launch(divergence_rows, TILE_OF_BOTH, student, tensors, use.of_logits, INVERSE_TEMPERATURE=1.0 / use.temperature)


def launch_top(logits: Tensor, bias: Tensor | None, teacher: TopRows, use: Use, results: Results) -> None:
    """Both passes over the rows of ``logits`` [C, V], of which those that ``teacher`` knows are overwritten."""
    tensors = (logits, bias, teacher.token_ids, teacher.log_probabilities, use.labels, use.kl_rows, *results)
    num_kept = teacher.token_ids.shape[1]
    constants = {"INVERSE_TEMPERATURE": 1.0 / use.temperature, "KEPT": triton.next_power_of_2(num_kept)}
    _launch(top_divergence_rows, TILE, logits, tensors, (num_kept, *use.of_logits), **constants)


def _launch(
    kernel: Any,
    tile: int,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    **constants: Any,
) -> None:
    """One program for each row of ``logits`` [C, V]."""
    num_rows, vocab_size = logits.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        kernel[(num_rows,)](
            *tensors,
            logits.stride(0),
            vocab_size,
            *numbers,
            **constants,
            TILE=min(tile, triton.next_power_of_2(vocab_size)),
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,  # said outright: Triton 3.10 turns the default round
        )
