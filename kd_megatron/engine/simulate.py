"""What a micro-batch holds at its height, found by running it on tensors without numbers.

The models and the objective are those of a run, on PyTorch's device ``meta``, where every operation has shapes and
sizes alone. So what layers keep for their backward pass, what a loss needs, and what activation checkpointing saves is
not estimated but counted, operation by operation, in a fraction of a second whatever the size.
"""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PretrainedConfig

from kd_megatron.data import masking
from kd_megatron.engine.batch_split import split
from kd_megatron.engine.flops import teacher_config
from kd_megatron.machine.memory import Living
from kd_megatron.models.build import DTYPES, drop_what_is_not_needed, shape_of, student_config
from kd_megatron.models.taps import Execution, TappedEncoder
from kd_megatron.objectives import of_arm, schedule
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.recipe import StudyRecipe
from kd_megatron.tensors import Batch, Needs

NOWHERE = torch.device("meta")
FLOAT32, FLOAT32_AND_ADAM = 4, 16  # bytes of a parameter, frozen and trained: what phases are compared by
LARGEST_RUN = 16  # sequences; of a larger micro-batch it is known what they hold


@dataclass(frozen=True)
class Held:
    """Of one process that holds both models whole: bytes, and elements of each parameter."""

    teacher: list[int]  # elements
    trained: list[int]  # elements, of student and objective
    untrained: list[int]
    with_gradients: int  # bytes that a micro-batch adds at its height
    forward: int  # the same until the first gradient of a parameter is there
    backward: int  # and from then on, when gradients are taken away as they come

    @property
    def alone(self) -> int:
        """Bytes that a micro-batch adds at its height, gradients apart."""
        return max(self.forward, self.backward)


def simulate_arm(study: StudyRecipe, arm: str, vocab_size: int, num_processes: int = 1) -> Held:
    """`simulate` for ``arm`` of a study with a vocabulary of that size; of a schedule, the phase that holds most.

    Raises as `flops.arm_cost` does.
    """
    student, teacher = student_config(study.student, vocab_size), teacher_config(study, vocab_size)
    phases = schedule.phases_of(of_arm.parse_options(study.arms[arm], where=f"arms.{arm}"))
    each = [_simulate_phase(study, phase.options, student, teacher, num_processes) for phase in phases]
    return max(each, key=lambda held: held.alone + FLOAT32_AND_ADAM * sum(held.trained) + FLOAT32 * sum(held.teacher))


def _simulate_phase(
    study: StudyRecipe,
    options: ObjectiveOptions,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    num_processes: int,
) -> Held:
    """Bytes grow linearly with the micro-batch once losses work in pieces. A large one is not run as a whole, which
    would take many small pieces: two small ones tell what it holds (within 0.5 % at 256 of `paper_6l`).
    """

    def held(micro_batch_size: int) -> Held:
        training = study.training.model_copy(update={"micro_batch_size": micro_batch_size})
        objective = of_arm.build(options, shape_of(student), None if teacher is None else shape_of(teacher))
        return simulate(study.model_copy(update={"training": training}), objective, student, teacher)

    size = split(study.training, num_processes).size
    if size <= LARGEST_RUN:
        return held(size)
    half, whole = held(LARGEST_RUN // 2), held(LARGEST_RUN)
    halves_more = (size - LARGEST_RUN) / (LARGEST_RUN // 2)

    def grown(kind: str) -> int:
        return round(getattr(whole, kind) + halves_more * (getattr(whole, kind) - getattr(half, kind)))

    return replace(whole, with_gradients=grown("with_gradients"), forward=grown("forward"), backward=grown("backward"))


def simulate(
    study: StudyRecipe, objective: Objective, student: PretrainedConfig, teacher: PretrainedConfig | None
) -> Held:
    """Simulate one micro-batch of ``study``, with ``precision`` decided, under ``objective`` (moved to ``meta``).

    Args:
        study: its teacher may be whole or in pieces, from a cache or not: all are taken to be whole and to run.
        teacher: its config; None when the objective has none.
    """
    training, data = study.training, study.data
    again = Execution(recompute=training.activation_checkpointing)
    encoder = _encoder(student, objective.needs_student, again, whole=not training.stop_at_last_tap)
    module = nn.ModuleList([encoder, objective]).to(NOWHERE, DTYPES[training.precision]).train()
    frozen = None
    if objective.needs_teacher is not None and teacher is not None and study.teacher is not None:
        frozen = _encoder(teacher, objective.needs_teacher, Execution(), whole=False)
        drop_what_is_not_needed(frozen.model, objective.needs_teacher)
        frozen.to(DTYPES[study.teacher.precision]).eval().requires_grad_(False)
    num_masked = masking.num_masked(data.mask_fraction, data.sequence_length)
    batch, inputs = _batch(training.micro_batch_size, data.sequence_length, num_masked), objective.options.inputs

    def compute() -> None:
        with torch.no_grad():
            taps = None if frozen is None else frozen(batch, inputs)
        sums = objective(encoder(batch, inputs), taps, batch)
        torch.stack([sums[term] * objective.weights[term] for term in sums]).sum().backward()

    with _living() as living:
        compute()
    with_gradients = living.peak_bytes
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    peaks: list[int] = []  # when each gradient came

    def take_away(parameter: Tensor) -> None:
        peaks.append(living.peak_bytes)
        if len(peaks) == 1:
            living.peak_bytes = 0
        parameter.grad = None

    for parameter in trained:
        parameter.grad = None
        parameter.register_post_accumulate_grad_hook(take_away)
    with _living() as living:
        compute()
    return Held(
        teacher=[] if frozen is None else [parameter.numel() for parameter in frozen.parameters()],
        trained=[parameter.numel() for parameter in trained],
        untrained=[parameter.numel() for parameter in module.parameters() if not parameter.requires_grad],
        with_gradients=with_gradients,
        forward=peaks[0],
        backward=living.peak_bytes,
    )


def _encoder(config: PretrainedConfig, needs: Needs, execution: Execution, whole: bool) -> TappedEncoder:
    with NOWHERE:
        model = AutoModelForMaskedLM.from_config(copy.deepcopy(config))
    encoder = TappedEncoder(model, needs, whole, execution)
    encoder.attend = _fused_attention
    return encoder


def _batch(size: int, length: int, num_masked: int) -> Batch:
    ids, slots = (torch.empty(size, n, dtype=torch.int64, device=NOWHERE) for n in (length, num_masked))
    return Batch(ids, ids, None, slots, slots, torch.empty(size, dtype=torch.int64, device=NOWHERE))


def _fused_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """What a fused kernel keeps: queries, keys, values, its output and one number per query and head."""
    output: Tensor = _FusedAttention.apply(queries, keys, values)
    return output


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = torch.empty_like(queries)
        ctx.save_for_backward(queries, keys, values, output, queries.new_empty(queries.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _living() -> Iterator[Living]:
    """The collector of reference cycles stands still meanwhile: what is counted must not hang on when it comes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with Living() as living:
            yield living
    finally:
        if was_enabled:
            gc.enable()
