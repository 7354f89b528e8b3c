"""Distillation of attention scores and hidden states, layer by layer.

Source: the general stage of TinyBERT, Jiao et al. 2020, arXiv 1909.10351, "Transformer Distillation".

    loss = sum over student layers i = 1..L_s of MSE(scores_s(i), scores_t(g(i)))             term attention
         + sum over i = 0..L_s of MSE(W h_s(i), h_t(g(i))),   0 being the embedding output    term hidden

with g(i) = i * L_t / L_s and scores before softmax. One projection W is shared by all layers, as in the released code
(the paper writes W_e for the embeddings and W_h for the layers); it has no bias, as in the paper (the released code has
one). No MLM or logit term: the student's own head is not trained.

Shapes: B batch, L length, D_s and D_t hidden sizes, H heads.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from kd_megatron.errors import ModelError
from kd_megatron.kernels import hidden_mse as hidden_kernel
from kd_megatron.kernels import score_mse as kernel
from kd_megatron.kernels.door import AUTO, check_backend, shared_divisors
from kd_megatron.objectives import checks
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.recipe import Count
from kd_megatron.tensors import Batch, ModelShape, Needs, Taps

Backend = Annotated[str, AfterValidator(lambda name: check_backend(name, kernel.BACKENDS))]
INITIAL_STANDARD_DEVIATION = 0.02  # of W: BERT's, which the released code gives it too


class TinyBertOptions(ObjectiveOptions):
    """Options of objective ``tinybert``. The paper's general stage reads clean text: ``inputs: clean``."""

    objective: Literal["tinybert"]
    num_relation_heads: Count | None = None  # an extension: re-split projections into as many heads; None: heads agree
    projection: Literal["auto", "always"] = "auto"  # auto: only when hidden sizes differ
    as_coded: bool = False  # as the study's code computes it: `TinyBertAsCoded`
    backend: Backend = AUTO

    @model_validator(mode="after")
    def _as_coded_is_plain(self) -> Self:
        if self.as_coded and (self.num_relation_heads is not None or self.projection != "auto"):
            raise ValueError(
                "with as_coded scores and hidden states are compared as they are; leave num_relation_heads and "
                "projection out"
            )
        return self


class TinyBert(Objective):
    """Terms ``attention`` and ``hidden``, each a sum of per-layer means: its count is that of one layer."""

    options: TinyBertOptions

    def __init__(self, options: TinyBertOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__(options, student, teacher)
        self.teacher_shape = checks.require_teacher("tinybert", teacher)
        self.num_heads = _num_heads(options, student, self.teacher_shape)
        self.layers = layer_mapping(student.num_layers, self.teacher_shape.num_layers)
        student_layers, teacher_layers = tuple(self.layers), tuple(self.layers.values())
        self.needs_student = Needs(queries=student_layers[1:], keys=student_layers[1:], hidden=student_layers)
        self.needs_teacher = Needs(queries=teacher_layers[1:], keys=teacher_layers[1:], hidden=teacher_layers)
        self.weights = {"attention": 1.0, "hidden": 1.0}
        self.projection: nn.Linear | None = None
        if options.projection == "always" or student.hidden_size != self.teacher_shape.hidden_size:
            self.projection = nn.Linear(student.hidden_size, self.teacher_shape.hidden_size, bias=False)
            nn.init.normal_(self.projection.weight, std=INITIAL_STANDARD_DEVIATION)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """``attention``: valid (query, key) pairs times heads; ``hidden``: real tokens times teacher features."""
        lengths = batch.valid().sum(-1, dtype=torch.float64)  # [B]
        return {
            "attention": lengths.square().sum() * self.num_heads,
            "hidden": lengths.sum() * self.teacher_shape.hidden_size,
        }

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """Sums over all layers of squared differences of scores (``attention``) and hidden states (``hidden``)."""
        teacher_taps = checks.present("teacher", teacher)
        valid = batch.attention_mask
        attention = [
            kernel.score_mse(
                student.queries[i],
                student.keys[i],
                teacher_taps.queries[g],
                teacher_taps.keys[g],
                self.num_heads,
                valid,
                self.options.backend,
            )
            for i, g in self.layers.items()
            if i > 0
        ]
        hidden = [
            hidden_kernel.hidden_mse(
                self._projected(student.hidden[i]),
                teacher_taps.hidden[g],
                valid,
                hidden_backend(self.options.backend),
            )
            for i, g in self.layers.items()
        ]
        return {"attention": torch.stack(attention).sum(), "hidden": torch.stack(hidden).sum()}

    def _projected(self, student_hidden: Tensor) -> Tensor:
        """W h_s: [B, L, D_t], in the dtype of the tap, as any layer of the student would compute it."""
        if self.projection is None:
            return student_hidden
        return functional.linear(student_hidden, self.projection.weight.to(student_hidden.dtype))

    def flops(self, length: int, num_masked: int) -> float:
        """Attention: `score_mse_flops` per student layer. Hidden, per representation (L_s + 1 of them):

        `hidden_mse_flops` and, with a projection, ``6 L D_s D_t`` (forward 2,
        backward 2 to the hidden state and 2 to W).
        """
        student_width, teacher_width = self.student.hidden_size, self.teacher_shape.hidden_size
        attention = kernel.score_mse_flops(length, self.num_heads, student_width, teacher_width)
        projection = 6.0 * length * student_width * teacher_width if self.projection is not None else 0.0
        hidden = hidden_kernel.hidden_mse_flops(length, teacher_width) + projection
        return self.student.num_layers * attention + (self.student.num_layers + 1) * hidden


def layer_mapping(num_student_layers: int, num_teacher_layers: int) -> dict[int, int]:
    """g: student representation i = 0..L_s -> teacher representation i * L_t / L_s, which must be whole."""
    if num_teacher_layers % num_student_layers:
        fitting = ", ".join(map(str, shared_divisors(num_teacher_layers)))
        raise ModelError(
            given=f"objective tinybert: {num_student_layers} student layers do not divide {num_teacher_layers} teacher "
            "layers, so layer i of the student has no teacher layer i * L_t / L_s",
            expected=f"a student of {fitting} layers",
            fix="change student.num_layers or the teacher",
        )
    step = num_teacher_layers // num_student_layers
    return {i: i * step for i in range(num_student_layers + 1)}


def _num_heads(options: TinyBertOptions, student: ModelShape, teacher: ModelShape) -> int:
    if options.num_relation_heads is not None:
        checks.require_heads_divide("tinybert", options.num_relation_heads, student, teacher)
        return options.num_relation_heads
    if student.num_attention_heads != teacher.num_attention_heads:
        fitting = ", ".join(map(str, shared_divisors(student.hidden_size, teacher.hidden_size)))
        raise ModelError(
            given=f"objective tinybert: {student.num_attention_heads} attention heads (student), "
            f"{teacher.num_attention_heads} (teacher)",
            expected="equal numbers of heads, as scores are compared head by head",
            fix=f"change student.num_attention_heads, or set num_relation_heads (an extension) to one of {fitting}",
        )
    return student.num_attention_heads


def hidden_backend(backend: str) -> str:
    """The backend of `hidden_mse` where scores have ``backend``: the one of that name, otherwise ``"auto"``."""
    return backend if backend in hidden_kernel.BACKENDS else AUTO
