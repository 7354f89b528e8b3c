"""Distillation of the MLM head (Hinton et al. 2015, arXiv 1503.02531; DistilBERT, Sanh et al. 2019, arXiv 1910.01108).

    loss = w_kd * T^2 * KL(p_t^T || p_s^T) + w_mlm * MLM + w_cosine * (1 - cos(h_s, h_t))

The divergence is summed over the vocabulary and averaged over positions. T^2 is part of the weight of term ``kd``, so
the logged term is a plain divergence in nats.

Shapes: B batch, L length, K masked slots, D hidden size, V vocabulary, N rows (B * K or B * L).
"""

from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor
from torch.nn import functional

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.kernels import vocab_kl as kernel
from kd_megatron.kernels.arithmetic import accumulation_dtype
from kd_megatron.kernels.door import AUTO, check_backend
from kd_megatron.objectives import checks
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.scratch import num_labels, refuse_clean_inputs
from kd_megatron.recipe import Positive
from kd_megatron.tensors import IGNORED, Batch, ModelShape, Needs, Taps

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Backend = Annotated[str, AfterValidator(lambda name: check_backend(name, kernel.BACKENDS))]


class VanillaKdOptions(ObjectiveOptions):
    """Options of objective ``vanilla_kd``. DistilBERT's own: ``positions: all`` and ``weight_cosine: 1``."""

    objective: Literal["vanilla_kd"]
    temperature: Positive = 2.0
    weight_kd: Weight = 5.0
    weight_mlm: Weight = 2.0
    weight_cosine: Weight = 0.0  # over all real tokens, whatever `positions` says: it needs no head
    positions: Literal["masked", "all"] = "masked"  # of the divergence; "all" runs both heads at every position
    as_coded: bool = False  # as the study's code computes it, `VanillaKdAsCoded`: temperature and weights 1
    backend: Backend = AUTO

    @model_validator(mode="after")
    def _usable(self) -> Self:
        refuse_clean_inputs(self)
        if self.as_coded and (self.positions != "masked" or self.weight_cosine):
            raise ValueError("with as_coded logits are compared at masked positions, without a cosine term")
        if not self.weight_kd > 0:
            raise ValueError("weight_kd is 0, so nothing is distilled from the logits; use objective scratch")
        return self


class VanillaKd(Objective):
    """Terms ``kd``, ``mlm`` and, when its weight is not 0, ``cosine``."""

    options: VanillaKdOptions

    def __init__(self, options: VanillaKdOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__(options, student, teacher)
        teacher = checks.require_teacher("vanilla_kd", teacher)
        if student.vocab_size != teacher.vocab_size:
            raise ModelError(
                given=f"objective vanilla_kd: vocabularies of {student.vocab_size} (student) and {teacher.vocab_size} "
                "(teacher) entries",
                expected="one vocabulary, as logits are compared entry by entry",
                fix="prepare the shards with the teacher's tokenizer; the student's vocabulary follows the shards",
            )
        if options.weight_cosine and student.hidden_size != teacher.hidden_size:
            raise ModelError(
                given=f"objective vanilla_kd: weight_cosine {options.weight_cosine} with hidden sizes "
                f"{student.hidden_size} (student) and {teacher.hidden_size} (teacher)",
                expected="equal hidden sizes, as the cosine compares hidden states",
                fix="set weight_cosine to 0 in the arm",
            )
        self.needs_student = self._needs(student)
        self.needs_teacher = self._needs(teacher)
        self.weights = {"kd": options.weight_kd * options.temperature**2, "mlm": options.weight_mlm}
        if options.weight_cosine:
            self.weights["cosine"] = options.weight_cosine

    def _needs(self, shape: ModelShape) -> Needs:
        everywhere = self.options.positions == "all"
        hidden = (shape.num_layers,) if self.options.weight_cosine else ()
        return Needs(hidden=hidden, logits=not everywhere, all_logits=everywhere)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """``kd``: positions compared; ``mlm``: slots with a label; ``cosine``: real tokens."""
        num_tokens = batch.valid().sum(dtype=torch.float64)
        num_targets = num_labels(batch)
        counts = {"kd": num_tokens if self.options.positions == "all" else num_targets, "mlm": num_targets}
        if "cosine" in self.weights:
            counts["cosine"] = num_tokens
        return counts

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """``kd``: sum of KL(p_t^T || p_s^T); ``mlm``: sum of the cross-entropy; ``cosine``: sum of 1 - cos."""
        teacher_taps = checks.present("teacher", teacher)
        terms = (
            self._everywhere(student, teacher_taps, batch)
            if self.options.positions == "all"
            else (self._at_masks(student, teacher_taps, batch))
        )
        if "cosine" in self.weights:
            (student_hidden,), (teacher_hidden,) = student.hidden.values(), teacher_taps.hidden.values()
            terms["cosine"] = cosine_distance(student_hidden, teacher_hidden, batch.attention_mask)
        return terms

    def _at_masks(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        """Both terms at the masked slots in one pass: their counts are equal, so their weights are all that differs.

        With a teacher from a cache the divergence is of its likeliest tokens and the rest: a bound from below.
        """
        logits, labels = checks.present("logits", student.logits).rows(), batch.labels.flatten()
        weights, backend = (self.weights["kd"], self.weights["mlm"]), self.options.backend
        temperature = self.options.temperature
        if teacher.top_logits is None:
            of_teacher = checks.present("logits", teacher.logits).rows()
            kd, mlm = kernel.vocab_kl(
                logits, of_teacher, labels, temperature, gradient_weights=weights, backend=backend
            )
        else:
            kept_at = teacher.top_logits.temperature
            if kept_at != temperature:
                raise RecipeError(
                    given=f"objective vanilla_kd: temperature {temperature:g}, but the cached logits of the teacher "
                    f"are at temperature {kept_at:g}",
                    expected="one temperature, as a distribution at one does not tell that at another",
                    fix=f"set temperature to {kept_at:g} in the arm, or give it a teacher.cache.path of its own",
                )
            kd, mlm = kernel.vocab_topk_kl(
                logits, teacher.top_logits.rows(), labels, gradient_weights=weights, backend=backend
            )
        return {"kd": kd, "mlm": mlm}

    def _everywhere(self, student: Taps, teacher: Taps, batch: Batch) -> dict[str, Tensor]:
        """The divergence at every position; the cross-entropy apart, as each is divided by a count of its own."""
        if teacher.top_logits is not None:
            raise RecipeError(
                given="objective vanilla_kd: positions all with cached logits of the teacher",
                expected="logits at every position; a cache has those at the masked slots",
                fix="set positions to masked in the arm, or take teacher.cache out of the recipe",
            )
        logits = checks.present("all_logits", student.all_logits)
        kd, _ = kernel.vocab_kl(
            logits.rows(),
            checks.present("all_logits", teacher.all_logits).rows(),
            torch.full_like(batch.input_ids, IGNORED).flatten(),
            self.options.temperature,
            batch.valid().flatten(),
            gradient_weights=(1.0, 0.0),
            backend=self.options.backend,
        )
        at_slots = replace(logits, states=batch.at_slots(logits.states)).rows()
        mlm = kernel.vocab_cross_entropy(at_slots, batch.labels.flatten(), self.options.backend)
        return {"kd": kd, "mlm": mlm}

    def flops(self, length: int, num_masked: int) -> float:
        """`vocab_kl_flops` of the compared rows (K or L), plus for the cosine 10 per hidden feature.

        (forward three products of 2, backward 4.) The same where the teacher's logits come from a cache. With
        positions "all" the cross-entropy multiplies the logits of the K masked slots out a second time: ``6 K D V``.
        """
        everywhere, width, vocab_size = (
            self.options.positions == "all",
            self.student.hidden_size,
            self.student.vocab_size,
        )
        again = 6.0 * num_masked * width * vocab_size if everywhere else 0.0
        cosine = 10.0 * length * width if "cosine" in self.weights else 0.0
        return kernel.vocab_kl_flops(length if everywhere else num_masked, vocab_size) + cosine + again


def cosine_distance(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Sum over valid tokens of 1 - cos(h_s, h_t), of hidden states [B, L, D]."""
    dtype = accumulation_dtype(student, teacher)
    cosine = functional.cosine_similarity(student.to(dtype), teacher.to(dtype), dim=-1)  # [B, L]
    distance = 1.0 - cosine
    return (distance if valid is None else distance.masked_fill(~valid, 0.0)).sum()
