"""Arms as `bench step` builds them: as the recipe has them, or carried out as no recipe can ask for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_megatron.engine.batch_split import split
from kd_megatron.machine import facts
from kd_megatron.machine.gpus import GPUS
from kd_megatron.models.build import load_teacher
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import run_recipe
from kd_megatron.tensors import Batch, Needs, Taps
from kd_megatron.training import timed_run
from kd_megatron.training.setup import Run, execution
from kd_megatron.training.teacher import Teacher


@dataclass(frozen=True)
class Variant:
    """An arm, or the same arm carried out otherwise.

    ``whole_teacher`` and ``whole_student`` run all layers and the MLM head at every position, used or not, as the
    study's code does. No recipe can ask for that.
    """

    name: str  # of its row
    backend: str  # of its row
    study: StudyRecipe  # with the arm's own overrides applied
    arm: str
    whole_teacher: bool = False
    whole_student: bool = False
    compiled_objective: bool = False  # by torch.compile, whole; no recipe can ask for that either
    num_warmup_steps: int = 2

    @property
    def key(self) -> str:
        """What its seconds are kept under."""
        return self.name if self.name.startswith("step/") else f"{self.name} {self.backend}"


def arm_variant(recipe: StudyRecipe, arm: str) -> Variant:
    """The arm as the recipe has it."""
    study = run_recipe(recipe, arm, recipe.seeds[0])
    return Variant(f"step/{arm}", str(study.arms[arm].get("backend", "auto")), study, arm)


class TimedVariant(timed_run.TimedRun):
    """A `Variant`, built and warm, with what its row says beside its speed."""

    def __init__(self, variant: Variant, directory: Path, teacher_path: str | None) -> None:
        self.variant = variant
        self._allocated_before = _allocated_bytes()
        change = partial(_carry_out, variant, teacher_path)
        super().__init__(variant.study, variant.arm, directory, teacher_path, variant.num_warmup_steps, change)
        self.peak_mib = self.measure_peak() if variant.num_warmup_steps else None

    @property
    def shape(self) -> str:
        """Batch and length; in brackets the split into micro-batches."""
        training = self.run.study.training
        size = split(training, dist.world_size()).size
        return batch_shape(training.global_batch_size, self.run.study.data.sequence_length, size)

    def losses_of_a_step(self) -> dict[str, float]:
        """One step, and the mean of each term of its loss. Raises `NonFiniteError` where there is none."""
        self.step()
        reading = self.run.step.read()
        return {term: value / reading.counts[term] for term, value in reading.sums.items()}

    def measure_peak(self) -> float | None:
        """MiB of one step at its height, with all that the run holds; None on a CPU, where runs share one heap."""
        if self.run.device.type != "cuda":
            return None
        own = _allocated_bytes() - self._allocated_before
        torch.cuda.reset_peak_memory_stats()
        before = _allocated_bytes()
        self.step()
        return (own + torch.cuda.max_memory_allocated() - before) / 2**20

    def flops_share(self, tokens_per_second: float) -> float | None:
        """MFU: matrix products of student and teacher over what the GPUs could do in bf16; None where unknown."""
        is_known = self.run.device.type == "cuda" and "H200" in facts.device_name()
        if not is_known or self.run.study.training.precision != "bf16":
            return None
        # A window's later visits: with a teacher cache, what is timed is a warm one.
        per_token = (self.run.cost.student + self.run.cost.teacher_again) / self.run.study.data.sequence_length
        return round(per_token * tokens_per_second / (GPUS["h200"].half_flops * dist.world_size()), 4)


@contextmanager
def built(variants: Sequence[Variant], teacher_path: str | None) -> Iterator[dict[str, TimedVariant]]:
    """The runs of ``variants`` by their keys, warm; their memory is given back in the end."""
    makers = {variant.key: partial(TimedVariant, variant, teacher_path=teacher_path) for variant in variants}
    with timed_run.built(makers) as runs:
        yield runs


def batch_shape(global_batch_size: int, length: int, micro_batch_size: int) -> str:
    """Such as ``B64 L128 (4x16)``."""
    split = f" ({global_batch_size // micro_batch_size}x{micro_batch_size})"
    return f"B{global_batch_size} L{length}" + split * (micro_batch_size != global_batch_size)


def _carry_out(variant: Variant, teacher_path: str | None, run: Run) -> None:
    """Change what the recipe of ``run`` could not ask for."""
    if variant.whole_teacher and run.step.teacher is not None and teacher_path:
        needs = replace(run.objective.needs_teacher or Needs(), all_logits=True)
        dtype = next(run.step.teacher.encoder.parameters()).dtype
        whole = load_teacher(teacher_path, dtype, needs, run.device, execution(variant.study))
        run.step.teacher = Teacher(_multiply_out(whole))
    if variant.whole_student:
        student = run.module.student
        student.needs = replace(student.needs, all_logits=True)
        _multiply_out(student)
    if variant.compiled_objective:
        run.objective.compile(dynamic=False)


def _allocated_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _multiply_out(encoder: TappedEncoder) -> TappedEncoder:
    """Multiply the logits of every position out after each forward; nobody reads them."""
    encoder.register_forward_hook(_all_logits)
    return encoder


def _all_logits(encoder: nn.Module, inputs: tuple[Any, ...], taps: Taps) -> Taps:
    batch, logits = inputs[0], taps.all_logits
    assert isinstance(batch, Batch)
    assert logits is not None
    # The study takes the masked positions' logits out of these; here the objective multiplies those out itself.
    skipped = batch.masked_positions.size(1) if taps.logits is not None else 0
    replace(logits, states=logits.states[:, skipped:]).dense()
    return replace(taps, all_logits=None)
