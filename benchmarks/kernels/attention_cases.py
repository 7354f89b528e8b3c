"""The kernels over attention, `relation_kl` and `score_mse`, and over hidden states, `hidden_mse`, at a shape.

Shapes: B batch, L length, H attention heads, d head size, R relation heads, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.random_inputs import RandomTensors, lengths_mask
from kd_megatron.kernels import hidden_mse, relation_kl, score_mse

RELATIONS = ("queries", "keys", "values")


@dataclass(frozen=True)
class RelationKl(Case):
    """`relation_kl` of ``num_relations`` taps.

    ``padded``: sequences of unequal length, one of them empty, with NaN at padding. ``fused``: the taps are strided
    views of one projection. ``opposed``: scores are near 70 between positions that are both even or both odd, near -70
    otherwise.
    """

    name: ClassVar[str] = "relation_kl"
    batch: int
    length: int
    student_heads: tuple[int, int] = (12, 64)  # H_s, d_s
    teacher_heads: tuple[int, int] = (12, 64)  # H_t, d_t
    num_relation_heads: int = 12
    num_relations: int = 3
    padded: bool = False
    fused: bool = False
    opposed: bool = False

    @property
    def shape(self) -> str:
        """B, L, relation heads R and their sizes d."""
        student, teacher = (heads[0] * heads[1] // self.num_relation_heads for heads in self._all_heads)
        sizes = f"d{student}" if student == teacher else f"d{student}/{teacher}"
        notes = [" padded"] * self.padded + [" fused"] * self.fused + [" opposed"] * self.opposed
        return f"B{self.batch} L{self.length} R{self.num_relation_heads} {sizes} x{self.num_relations}" + "".join(notes)

    @property
    def num_tokens(self) -> int:
        """B * L."""
        return self.batch * self.length

    @property
    def eager_bytes(self) -> float:
        """Nine tensors of L x L per relation: scores, logarithms and probabilities of both, and their gradients."""
        return 9 * 4.0 * self.num_relations * self.num_relation_heads * self.batch * self.length**2

    @property
    def weights(self) -> tuple[float, ...]:
        """1, 1/2, 1/4."""
        return tuple(0.5**index for index in range(self.num_relations))

    @property
    def _all_heads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.student_heads, self.teacher_heads

    def backends(self) -> Sequence[str]:
        """The keys of the door's BACKENDS."""
        return list(relation_kl.BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """Taps, and ``valid`` where padded."""
        make = RandomTensors(dtype, device, seed)
        valid = lengths_mask(self.batch, self.length, device) if self.padded else None
        inputs = {} if valid is None else {"valid": valid}
        for side, heads in zip(("student", "teacher"), self._all_heads, strict=True):
            leading = (self.batch, self.length)
            shapes: dict[str, tuple[int, ...]] = {
                f"{side}_{relation}": (*leading, *heads) for relation in RELATIONS[: self.num_relations]
            }
            if self.fused:
                shapes = {side: (*leading, self.num_relations, *heads)}
            for name, shape in shapes.items():
                spread, offset = (0.5, _opposed(shape, device)) if self.opposed else (1.0, None)
                inputs[name] = make.tensor(shape, spread, offset, valid, trained=side == "student")
        return inputs

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """The divergence of each relation."""
        student, teacher = (self.taps(inputs, side) for side in ("student", "teacher"))
        return relation_kl.relation_kl(student, teacher, self.num_relation_heads, inputs.get("valid"), backend)

    def taps(self, inputs: Mapping[str, Tensor], side: str) -> list[Tensor]:
        """The projections [B, L, H, d] of ``"student"`` or ``"teacher"``."""
        if self.fused:
            return list(inputs[side].unbind(2))
        return [inputs[f"{side}_{relation}"] for relation in RELATIONS[: self.num_relations]]


def _opposed(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """[L, 1, ...]: a feature whose product over d of them, with itself, is 70 sqrt(d); its sign alternates with L."""
    _, length, *others = shape
    signs = 1.0 - 2.0 * (torch.arange(length, device=device) % 2)
    return signs.view(length, *[1] * len(others)) * (70 / shape[-1] ** 0.5) ** 0.5


@dataclass(frozen=True)
class ScoreMse(Case):
    """`score_mse`; ``padded`` as in `RelationKl`."""

    name: ClassVar[str] = "score_mse"
    batch: int
    length: int
    student_heads: tuple[int, int] = (12, 64)
    teacher_heads: tuple[int, int] = (12, 64)
    padded: bool = False

    @property
    def shape(self) -> str:
        """B, L, heads H and their sizes d."""
        (num_heads, student), (_, teacher) = self.student_heads, self.teacher_heads
        sizes = f"d{student}" if student == teacher else f"d{student}/{teacher}"
        return f"B{self.batch} L{self.length} H{num_heads} {sizes}" + " padded" * self.padded

    @property
    def num_tokens(self) -> int:
        """B * L."""
        return self.batch * self.length

    @property
    def eager_bytes(self) -> float:
        """Six tensors of L x L: two scores, difference, square and two gradients."""
        return 6 * 4.0 * self.student_heads[0] * self.batch * self.length**2

    def backends(self) -> Sequence[str]:
        """The keys of the door's BACKENDS."""
        return list(score_mse.BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """Four taps, and ``valid`` where padded."""
        make = RandomTensors(dtype, device, seed)
        valid = lengths_mask(self.batch, self.length, device) if self.padded else None
        inputs = {} if valid is None else {"valid": valid}
        for side, heads in (("student", self.student_heads), ("teacher", self.teacher_heads)):
            for tap in ("queries", "keys"):
                shape = (self.batch, self.length, *heads)
                inputs[f"{side}_{tap}"] = make.tensor(shape, 1.0, valid=valid, trained=side == "student")
        return inputs

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """The squared difference."""
        loss = score_mse.score_mse(
            inputs["student_queries"],
            inputs["student_keys"],
            inputs["teacher_queries"],
            inputs["teacher_keys"],
            valid=inputs.get("valid"),
            backend=backend,
        )
        return loss[None]


@dataclass(frozen=True)
class HiddenMse(Case):
    """`hidden_mse` of one layer; ``padded`` as in `RelationKl`."""

    name: ClassVar[str] = "hidden_mse"
    batch: int
    length: int
    width: int = 768
    padded: bool = False

    @property
    def shape(self) -> str:
        """B, L and features D."""
        return f"B{self.batch} L{self.length} D{self.width}" + " padded" * self.padded

    @property
    def num_tokens(self) -> int:
        """B * L."""
        return self.batch * self.length

    @property
    def eager_bytes(self) -> float:
        """Four tensors: both states widened, their difference and its square."""
        return 4 * 4.0 * self.num_tokens * self.width

    def backends(self) -> Sequence[str]:
        """The keys of the door's BACKENDS."""
        return list(hidden_mse.BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """Two hidden states, and ``valid`` where padded."""
        make = RandomTensors(dtype, device, seed)
        valid = lengths_mask(self.batch, self.length, device) if self.padded else None
        inputs = {} if valid is None else {"valid": valid}
        for side in ("student", "teacher"):
            shape = (self.batch, self.length, self.width)
            inputs[side] = make.tensor(shape, 1.0, valid=valid, trained=side == "student")
        return inputs

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """The squared difference."""
        return hidden_mse.hidden_mse(inputs["student"], inputs["teacher"], inputs.get("valid"), backend)[None]
