"""What objectives check of the models when they are built."""

from typing import TypeVar

from kd_megatron.errors import ModelError
from kd_megatron.kernels.door import shared_divisors
from kd_megatron.tensors import ModelShape

Output = TypeVar("Output")


def require_teacher(objective: str, teacher: ModelShape | None) -> ModelShape:
    """The teacher, or an error saying that ``objective`` distils one."""
    if teacher is None:
        raise ModelError(
            given=f"objective {objective} without a teacher",
            expected="a study with a section 'teacher'",
            fix="add the section 'teacher' to the recipe, or use objective scratch",
        )
    return teacher


def require_heads_divide(objective: str, num_heads: int, student: ModelShape, teacher: ModelShape) -> None:
    """Refuse a number of relation heads that does not divide both hidden sizes; the error lists those that do."""
    if student.hidden_size % num_heads or teacher.hidden_size % num_heads:
        raise ModelError(
            given=f"objective {objective}: num_relation_heads {num_heads} does not divide both hidden sizes "
            f"({student.hidden_size} student, {teacher.hidden_size} teacher)",
            expected=f"one of {', '.join(map(str, shared_divisors(student.hidden_size, teacher.hidden_size)))}",
            fix="set num_relation_heads in the arm",
        )


def require_layer(objective: str, key: str, layer: int, model: str, shape: ModelShape) -> None:
    """Refuse a 1-based ``layer`` (recipe key ``key``) that the model does not have."""
    if not 1 <= layer <= shape.num_layers:
        raise ModelError(
            given=f"objective {objective}: {key} {layer}, but the {model} has {shape.num_layers} layers",
            expected=f"1 to {shape.num_layers}",
            fix=f"set {key} in the arm",
        )


def present(name: str, output: Output | None) -> Output:
    """The model output ``name``; a step that did not ask the model for what the objective needs is told so."""
    if output is None:
        raise ValueError(f"no {name} given; allowed: what needs_student and needs_teacher ask for")
    return output
