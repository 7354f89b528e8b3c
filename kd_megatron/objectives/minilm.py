"""Distillation of self-attention relations (MiniLMv2, Wang et al. 2021, arXiv 2012.15828, section 3.1).

For X in {queries, keys, values} of one layer of each model: relation = softmax(X X^T / sqrt(D/R)), X being one of R
relation heads of the projection [B, L, D]; loss = KL(relation_t || relation_s), averaged over relation heads and valid
query rows, summed over X. No MLM term: the student's own head is not trained.

Shapes: B batch, L length, D hidden size, R relation heads.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from kd_megatron.kernels import relation_kl as kernel
from kd_megatron.kernels.door import AUTO, check_backend
from kd_megatron.objectives import checks
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.recipe import Count, Positive
from kd_megatron.tensors import Batch, ModelShape, Needs, Relation, Taps

Backend = Annotated[str, AfterValidator(lambda name: check_backend(name, kernel.BACKENDS))]


class MiniLmOptions(ObjectiveOptions):
    """Options of objective ``minilm``. Usual: 48 relation heads for hidden size 768, 64 for 1024."""

    objective: Literal["minilm"]
    num_relation_heads: Count | None = None  # divides both hidden sizes; independent of attention heads
    teacher_layer: Count | None = None  # 1-based; None: `default_teacher_layer`
    student_layer: Count | None = None  # 1-based; None: the last
    relations: Annotated[dict[Relation, Positive], Field(min_length=1)] = {"queries": 1.0, "keys": 1.0, "values": 1.0}
    as_coded: bool = False  # as the study's code computes it, `MiniLmAsCoded`: the teacher's attention heads
    backend: Backend = AUTO

    @model_validator(mode="after")
    def _heads_are_known(self) -> Self:
        if self.num_relation_heads is None and not self.as_coded:
            raise ValueError("missing key num_relation_heads")
        if self.num_relation_heads is not None and self.as_coded:
            raise ValueError(
                "with as_coded the relation heads are the teacher's attention heads; leave num_relation_heads out"
            )
        return self


class MiniLm(Objective):
    """Terms ``queries``, ``keys``, ``values``: those named by the option ``relations``, with its weights."""

    options: MiniLmOptions

    def __init__(self, options: MiniLmOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__(options, student, teacher)
        self.teacher_shape = checks.require_teacher("minilm", teacher)
        assert options.num_relation_heads is not None  # the validator's promise; `MiniLmAsCoded` fills it in
        self.num_heads = options.num_relation_heads
        checks.require_heads_divide("minilm", self.num_heads, student, self.teacher_shape)
        self.student_layer = options.student_layer or student.num_layers
        self.teacher_layer = options.teacher_layer or default_teacher_layer(self.teacher_shape.num_layers)
        checks.require_layer("minilm", "student_layer", self.student_layer, "student", student)
        checks.require_layer("minilm", "teacher_layer", self.teacher_layer, "teacher", self.teacher_shape)
        self.needs_student = self._needs(self.student_layer)
        self.needs_teacher = self._needs(self.teacher_layer)
        self.weights = {str(relation): weight for relation, weight in options.relations.items()}

    def _needs(self, layer: int) -> Needs:
        def layers(relation: Relation) -> tuple[int, ...]:
            return (layer,) if relation in self.options.relations else ()

        return Needs(queries=layers("queries"), keys=layers("keys"), values=layers("values"))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Every term: valid query rows times relation heads."""
        num_rows = batch.valid().sum(dtype=torch.float64) * self.num_heads
        return dict.fromkeys(self.weights, num_rows)

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """Every term: sum over valid query rows and relation heads of KL(relation_t || relation_s), in nats."""
        teacher_taps = checks.present("teacher", teacher)
        sums = kernel.relation_kl(
            [getattr(student, relation)[self.student_layer] for relation in self.weights],
            [getattr(teacher_taps, relation)[self.teacher_layer] for relation in self.weights],
            self.num_heads,
            batch.attention_mask,
            self.options.backend,
        )
        return dict(zip(self.weights, sums, strict=True))

    def flops(self, length: int, num_masked: int) -> float:
        """`relation_kl_flops` once per relation."""
        return len(self.weights) * kernel.relation_kl_flops(
            length, self.num_heads, self.student.hidden_size, self.teacher_shape.hidden_size
        )


def default_teacher_layer(num_layers: int) -> int:
    """The last layer of a teacher of up to 12 layers; of a deeper one the fourth from the top: 21 of 24.

    The paper takes an upper-middle layer of large teachers: 21 of 24 for BERT-large.
    """
    return num_layers if num_layers <= 12 else num_layers - 3
