"""First weights of a student other than random ones: from layers of the teacher, or from a checkpoint.

Teacher layers come with embeddings and MLM head, as in DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 3).
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from kd_megatron import hub
from kd_megatron.errors import ModelError
from kd_megatron.models.build import load_model
from kd_megatron.models.taps import HEADS
from kd_megatron.schema import InitialiseRecipe


def initialise(student: PreTrainedModel, recipe: InitialiseRecipe, teacher_path: str | None) -> None:
    """Overwrite the student's random weights in place, as ``recipe`` says. Alike in all arms of a study."""
    if recipe.method == "checkpoint":
        if recipe.path is None:
            raise ModelError(given="student.initialise.method is 'checkpoint' without a path", fix="add its path")
        directory = hub.directory_on_all_ranks(recipe.path, recipe.revision, "student.initialise")
        _copy_all(student, load_model(directory, torch.float32, needs_head=True), recipe.path)
    elif recipe.method == "teacher_layers":
        if teacher_path is None:
            raise ModelError(given="student.initialise.method is 'teacher_layers' without a teacher", fix="add one")
        _copy_layers(student, load_model(teacher_path, torch.float32, needs_head=False), recipe.layers)


def uniform_layers(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """Evenly spread 1-based teacher layers, the last one included: 3 of 12 -> [4, 8, 12]."""
    return [round((i + 1) * num_teacher_layers / num_student_layers) for i in range(num_student_layers)]


def _copy_all(student: PreTrainedModel, source: PreTrainedModel, path: str) -> None:
    wanted, found = student.state_dict(), source.state_dict()
    differing = [k for k, v in wanted.items() if k not in found or found[k].shape != v.shape]
    if differing:
        raise ModelError(
            given=f"checkpoint {path!r} does not fit the student: {', '.join(differing[:3])} ({len(differing)} in all)",
            expected="the same architecture and sizes",
            fix="make the student's sizes those of the checkpoint",
        )
    student.load_state_dict(found, strict=False)


def _copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int] | None) -> None:
    num_student, num_teacher = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    layers = layers or uniform_layers(num_student, num_teacher)
    if len(layers) != num_student or not all(1 <= layer <= num_teacher for layer in layers):
        raise ModelError(
            given=f"student.initialise.layers {layers}",
            expected=f"{num_student} layers between 1 and {num_teacher}",
            fix="name one teacher layer for each student layer",
        )
    if (
        student.config.model_type != teacher.config.model_type
        or student.config.hidden_size != teacher.config.hidden_size
    ):
        raise ModelError(
            given=f"student {student.config.model_type} of width {student.config.hidden_size}, teacher "
            f"{teacher.config.model_type} of width {teacher.config.hidden_size}",
            expected="the same architecture and width, to copy teacher layers",
            fix="use initialise.method: random",
        )
    target: Any = student.base_model
    source: Any = teacher.base_model
    target.embeddings.load_state_dict(source.embeddings.state_dict())
    head = HEADS[student.config.model_type]
    getattr(student, head).load_state_dict(getattr(teacher, head).state_dict())
    for own, layer in zip(target.encoder.layer, layers, strict=True):
        own.load_state_dict(source.encoder.layer[layer - 1].state_dict())
