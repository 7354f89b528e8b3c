"""Several objectives at once: a weighted sum, from one pass of the student and one of the teacher.

    loss = sum over parts of weight * (the part's own loss)

A part is an objective with its options, a ``weight`` and, where two parts have the same objective, a ``name``. Each
part's terms are divided by their own counts, so a part of weight 1 weighs what it would weigh as an arm of its own.
"""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.kernels.door import AUTO
from kd_megatron.objectives import registry
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.recipe import Positive, config
from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.paths import PathPart
from kd_megatron.tensors import Batch, ModelShape, Needs, Taps

Keys = TypeVar("Keys", bound=Strict)
OF_PARTS = ("combined", "schedule")  # objectives made of others: no parts themselves


class PartKeys(Strict):
    """What a part says beside its objective's options."""

    weight: Positive = 1.0
    name: Annotated[PathPart, Field(pattern=r"^[^.]+$")] | None = None  # before the dot of its terms' names


class CombinedOptions(ObjectiveOptions):
    """Options of objective ``combined``; ``inputs`` holds for all parts."""

    made_of: ClassVar[str] = "parts"
    objective: Literal["combined"]
    parts: Annotated[list[dict[str, Any]], Field(min_length=2)]

    @field_validator("parts")
    @classmethod
    def _are_objectives(cls, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for number, part in enumerate(parts):
            options_of(part, f"part {number + 1}")
            own_keys(PartKeys, part, f"part {name_of(part)}")
        names = [name_of(part) for part in parts]
        if taken := [name for name in names if hasattr(nn.ModuleDict(), name)]:
            raise ValueError(
                f"a part cannot be called {taken[0]}, which torch's modules have for themselves: rename it"
            )
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two parts are called {repeated[0]}; give each a name of its own, such as name: first")
        return parts

    @model_validator(mode="after")
    def _read_the_same_text(self) -> Self:
        for part in self.parts:
            if part.get("inputs", self.inputs) != self.inputs:
                raise ValueError(
                    f"part {name_of(part)} reads {part['inputs']} text and the arm {self.inputs} text: one pass of the "
                    "models serves all parts; set inputs for the whole arm"
                )
        self.part_options()  # with those inputs
        return self

    def part_options(self) -> dict[str, ObjectiveOptions]:
        """Name of each part -> its options."""
        return {name_of(part): options_of(part | {"inputs": self.inputs}, name_of(part)) for part in self.parts}

    @property
    def backend(self) -> str:
        """What the parts ask for, for the check that all arms use the same kernels."""
        return backend_of(list(self.part_options().values()))

    @property
    def temperature(self) -> float:
        """Of the part that compares logits: a teacher cache keeps them at one temperature."""
        found = [getattr(part, "temperature", None) for part in self.part_options().values()]
        return next((temperature for temperature in found if temperature is not None), 1.0)


class Combined(Objective):
    """Terms ``PART.TERM``: those of all parts. A part's weight is in the weights of its terms."""

    options: CombinedOptions

    def __init__(self, options: CombinedOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__(options, student, teacher)
        built = {name: registry.build_simple(part, student, teacher) for name, part in options.part_options().items()}
        self.parts = nn.ModuleDict(built)
        self._built = built  # the same, by its type
        weights = {name_of(part): own_keys(PartKeys, part, name_of(part)).weight for part in options.parts}
        self.weights = {
            f"{name}.{term}": weights[name] * weight
            for name, part in built.items()
            for term, weight in part.weights.items()
        }
        self.needs_student = Needs().united(*(part.needs_student for part in built.values()))
        asked = [part.needs_teacher for part in built.values() if part.needs_teacher is not None]
        self.needs_teacher = Needs().united(*asked) if asked else None
        self.teacher_dropout = self._teacher_dropout()

    def _teacher_dropout(self) -> bool:
        modes = {part.teacher_dropout for part in self._built.values() if part.needs_teacher is not None}
        if len(modes) > 1:
            raise ModelError(
                given="objective combined: some parts have as_coded, and others that distil have not",
                expected="one teacher for all parts: with its dropout active, or without",
                fix="write as_coded in all parts that distil, or in none",
            )
        return True in modes

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the parts."""
        return {
            f"{name}.{term}": count for name, part in self._built.items() for term, count in part.counts(batch).items()
        }

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """Those of the parts; each sees the outputs that it asked for, and no others."""
        sums: dict[str, Tensor] = {}
        for name, part in self._built.items():
            of_teacher = None
            if teacher is not None and part.needs_teacher is not None:
                of_teacher = teacher.only(part.needs_teacher)
            terms: dict[str, Tensor] = part(student.only(part.needs_student), of_teacher, batch)
            sums |= {f"{name}.{term}": value for term, value in terms.items()}
        return sums

    def flops(self, length: int, num_masked: int) -> float:
        """The sum of the parts', and the decoder's products that a second part of the same logits makes again.

        Encoders and heads run once for all (`kd_megatron/engine/flops.py`); logits are multiplied out by each loss.
        """
        parts = self._built.values()
        again = _decoders_again([part.needs_student for part in parts], self.student, length, num_masked) * 3.0
        if self.teacher is not None:
            asked = [part.needs_teacher for part in parts if part.needs_teacher is not None]
            again += _decoders_again(asked, self.teacher, length, num_masked)
        return sum(part.flops(length, num_masked) for part in parts) + again


def _decoders_again(asked: list[Needs], shape: ModelShape, length: int, num_masked: int) -> float:
    """FLOPs of the products [positions, D] x [D, V] beyond the first at the masked slots and the first everywhere."""
    at_slots = max(0, sum(needs.logits for needs in asked) - 1) * num_masked
    everywhere = max(0, sum(needs.all_logits for needs in asked) - 1) * length
    return 2.0 * (at_slots + everywhere) * shape.hidden_size * shape.vocab_size


def own_keys(kind: type[Keys], written: dict[str, Any], where: str) -> Keys:
    """What a part or phase as written says beside its options. Raises ValueError as `options_of` does."""
    given = {key: value for key, value in written.items() if key in kind.model_fields}
    with for_a_validator():
        return config.validate(kind, given, where)


def name_of(part: dict[str, Any]) -> str:
    """What a part as written is called: its name, or its objective's."""
    return str(part.get("name") or part.get("objective"))


def options_of(part: dict[str, Any], where: str) -> ObjectiveOptions:
    """The options of a part as written.

    Raises:
        ValueError: they do not parse, or name an objective that is made of others; for a validator, which says where.
    """
    options = {key: value for key, value in part.items() if key not in PartKeys.model_fields}
    if options.get("objective") in OF_PARTS:
        raise ValueError(f"{where} has objective {options['objective']}; write its parts or phases out instead")
    with for_a_validator():
        return registry.parse_simple(options, where)


@contextlib.contextmanager
def for_a_validator() -> Iterator[None]:
    """Turn a `RecipeError` of the ``with`` block into the ValueError that a validator may raise."""
    try:
        yield
    except RecipeError as error:
        raise ValueError(str(error.given)) from error


def backend_of(options: list[ObjectiveOptions]) -> str:
    """``"auto"`` when all are, otherwise all that are asked for."""
    asked = {getattr(part, "backend", AUTO) for part in options} - {AUTO}
    return "+".join(sorted(asked)) or AUTO
