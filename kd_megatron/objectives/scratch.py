"""Pretraining from scratch (No-KD): masked language modelling (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

Shapes: B batch, K masked slots, V vocabulary.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor

from kd_megatron.kernels import vocab_kl as kernel
from kd_megatron.kernels.door import AUTO, check_backend
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.checks import present, require_mlm_head
from kd_megatron.tensors import IGNORED, Batch, ModelShape, Needs, Taps

Backend = Annotated[str, AfterValidator(lambda name: check_backend(name, kernel.CROSS_ENTROPY_BACKENDS))]


class ScratchOptions(ObjectiveOptions):
    """Options of objective ``scratch``."""

    objective: Literal["scratch"]
    backend: Backend = AUTO

    @model_validator(mode="after")
    def _reads_masks(self) -> Self:
        refuse_clean_inputs(self)
        return self


class Scratch(Objective):
    """Term ``mlm``: cross-entropy at the masked slots, in nats, counted per target."""

    options: ScratchOptions
    needs_teacher = None

    def __init__(self, options: ScratchOptions, student: ModelShape, teacher: ModelShape | None = None) -> None:
        super().__init__(options, student, teacher)
        require_mlm_head("scratch", "student", student)
        self.needs_student = Needs(logits=True)
        self.weights = {"mlm": 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """``mlm``: slots with a label."""
        return {"mlm": num_labels(batch)}

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """``mlm``: sum of the cross-entropy over slots with a label; ``teacher`` is not read."""
        logits = present("logits", student.logits).rows()
        return {"mlm": kernel.vocab_cross_entropy(logits, batch.labels.flatten(), self.options.backend)}

    def flops(self, length: int, num_masked: int) -> float:
        """Per logit of the K masked slots: a log-softmax of 4 operations; backward 2: ``6 K V``."""
        return 6.0 * num_masked * self.student.vocab_size


def num_labels(batch: Batch) -> Tensor:
    """How many masked slots hold a target: a float64 scalar."""
    return (batch.labels != IGNORED).sum(dtype=torch.float64)


def refuse_clean_inputs(options: ObjectiveOptions) -> None:
    """Refuse ``inputs: clean`` for an objective that predicts masked tokens."""
    if options.inputs == "clean":
        raise ValueError(
            f"objective {options.objective} predicts masked tokens: with inputs 'clean' it would read the answers; "
            "set inputs to 'masked'"
        )
