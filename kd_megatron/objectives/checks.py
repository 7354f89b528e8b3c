"""What objectives check: of the models when they are built (`ModelError`), of cached outputs (`RecipeError`)."""

from typing import TypeVar

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.kernels.door import shared_divisors
from kd_megatron.tensors import ModelShape, Taps, TopLogits

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


def require_same_vocabulary(objective: str, student: ModelShape, teacher: ModelShape) -> None:
    """Refuse models whose logits are over vocabularies of two sizes."""
    if student.vocab_size != teacher.vocab_size:
        raise ModelError(
            given=f"objective {objective}: vocabularies of {student.vocab_size} (student) and {teacher.vocab_size} "
            "(teacher) entries",
            expected="one vocabulary, as logits are compared entry by entry",
            fix="prepare the shards with the teacher's tokenizer; the student's vocabulary follows the shards",
        )


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


def require_temperature(objective: str, temperature: float, top_logits: TopLogits) -> None:
    """Refuse a teacher's cached distributions that are at another temperature than the objective's."""
    if top_logits.temperature != temperature:
        raise RecipeError(
            given=f"objective {objective}: temperature {temperature:g}, but the cached logits of the teacher are at "
            f"temperature {top_logits.temperature:g}",
            expected="one temperature, as a distribution at one does not tell that at another",
            fix=f"set temperature to {top_logits.temperature:g} in the arm, or give it a teacher.cache.path of its own",
        )


def refuse_top_logits(objective: str, option: str, teacher: Taps) -> None:
    """Refuse a teacher's cached distributions, which are of the masked slots, for an ``option`` that wants others."""
    if teacher.top_logits is not None:
        raise RecipeError(
            given=f"objective {objective}: {option} with cached logits of the teacher",
            expected="logits at every position; a cache has those at the masked slots",
            fix="set positions to masked in the arm, or take teacher.cache out of the recipe",
        )
