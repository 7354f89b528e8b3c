"""The kernels over the vocabulary: `vocab_kl`, `vocab_topk_kl` and `vocab_cross_entropy` at a shape.

Shapes: N rows, D hidden size, V vocabulary, k tokens of which a teacher's probability is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.random_inputs import RandomTensors
from kd_megatron.kernels import vocab_kl
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits


@dataclass(frozen=True)
class VocabCrossEntropy(Case):
    """`vocab_cross_entropy` from the states of the student. ``holes``: one label in four is `IGNORED`."""

    name: ClassVar[str] = "vocab_cross_entropy"
    num_rows: int
    vocab_size: int = 30522
    student_width: int = 768
    holes: bool = False

    @property
    def shape(self) -> str:
        """N, V, D."""
        return f"N{self.num_rows} V{self.vocab_size} D{self.student_width}" + " holes" * self.holes

    @property
    def num_tokens(self) -> int:
        """N: the rows alone reach the head."""
        return self.num_rows

    @property
    def eager_bytes(self) -> float:
        """Four tensors of N x V: logits, their logarithms, and the gradients of both."""
        return 4 * 4.0 * self.num_rows * self.vocab_size

    def backends(self) -> Sequence[str]:
        """The keys of the door's CROSS_ENTROPY_BACKENDS."""
        return list(vocab_kl.CROSS_ENTROPY_BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """States, weight and bias, and labels."""
        make = RandomTensors(dtype, device, seed)
        inputs = self._head(make, "student", self.student_width)
        inputs["labels"] = make.labels(self.num_rows, self.vocab_size)
        if self.holes:
            inputs["labels"][::4] = IGNORED
        return inputs

    def _head(self, make: RandomTensors, side: str, width: int) -> Inputs:
        trained = side == "student"
        return {
            f"{side}_states": make.tensor((self.num_rows, width), 1.0, trained=trained),
            f"{side}_weight": make.tensor((self.vocab_size, width), 2 * width**-0.5, trained=trained),
            f"{side}_bias": make.tensor((self.vocab_size,), 0.1, trained=trained),
        }

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """The cross-entropy."""
        return vocab_kl.vocab_cross_entropy(_factored(inputs, "student"), inputs["labels"], backend=backend)[None]


@dataclass(frozen=True)
class VocabKl(VocabCrossEntropy):
    """`vocab_kl`: divergence and cross-entropy, from the states of both models."""

    name: ClassVar[str] = "vocab_kl"
    teacher_width: int = 768
    temperature: float = 2.0

    @property
    def shape(self) -> str:
        """N, V and the width of both."""
        widths = f"D{self.student_width}"
        if self.teacher_width != self.student_width:
            widths += f"/{self.teacher_width}"
        return f"N{self.num_rows} V{self.vocab_size} {widths}" + " holes" * self.holes

    @property
    def eager_bytes(self) -> float:
        """Nine tensors of N x V."""
        return 9 * 4.0 * self.num_rows * self.vocab_size

    @property
    def weights(self) -> tuple[float, float]:
        """The divergence's factor T^2 and half the cross-entropy, as a recipe might mix them."""
        return self.temperature**2, 0.5

    def backends(self) -> Sequence[str]:
        """The keys of the door's BACKENDS."""
        return list(vocab_kl.BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """States, weight and bias of both models, and labels."""
        teacher = self._head(RandomTensors(dtype, device, seed + 1), "teacher", self.teacher_width)
        return {**super().inputs(dtype, device, seed), **teacher}

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """(divergence, cross-entropy)."""
        student, teacher = (_factored(inputs, side) for side in ("student", "teacher"))
        losses = vocab_kl.vocab_kl(
            student, teacher, inputs["labels"], self.temperature, gradient_weights=self.weights, backend=backend
        )
        return torch.stack(losses)


@dataclass(frozen=True)
class VocabTopkKl(VocabCrossEntropy):
    """`vocab_topk_kl`: divergence and cross-entropy, from the student's states and what a cache keeps of a teacher."""

    name: ClassVar[str] = "vocab_topk_kl"
    num_kept: int = 64
    temperature: float = 2.0

    @property
    def shape(self) -> str:
        """N, V, D, and how many tokens are kept."""
        return f"N{self.num_rows} V{self.vocab_size} D{self.student_width} k{self.num_kept}" + " holes" * self.holes

    @property
    def eager_bytes(self) -> float:
        """Eight tensors of N x V."""
        return 8 * 4.0 * self.num_rows * self.vocab_size

    @property
    def weights(self) -> tuple[float, float]:
        """As of `VocabKl`."""
        return self.temperature**2, 0.5

    def backends(self) -> Sequence[str]:
        """The keys of the door's TOPK_BACKENDS."""
        return list(vocab_kl.TOPK_BACKENDS)

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """States, weight, bias, labels and the kept probabilities: float32, as a cache hands them over."""
        make = RandomTensors(torch.float32, device, seed + 1)
        outcomes = make.tensor((self.num_rows, self.num_kept + 1), 2.0).log_softmax(-1)
        apart = torch.arange(self.num_kept, device=device) * (self.vocab_size // self.num_kept)
        return {
            **super().inputs(dtype, device, seed),
            "teacher_log_probabilities": outcomes[:, :-1].contiguous(),
            "teacher_token_ids": (make.labels(self.num_rows, self.vocab_size)[:, None] + apart) % self.vocab_size,
            "teacher_log_rest": outcomes[:, -1].contiguous(),
        }

    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """(divergence, cross-entropy)."""
        kept, token_ids, rest = (inputs[f"teacher_{name}"] for name in ("log_probabilities", "token_ids", "log_rest"))
        losses = vocab_kl.vocab_topk_kl(
            _factored(inputs, "student"),
            TopLogits(kept, token_ids, rest, self.temperature),
            inputs["labels"],
            gradient_weights=self.weights,
            backend=backend,
        )
        return torch.stack(losses)


def _factored(inputs: Mapping[str, Tensor], side: str) -> FactoredLogits:
    return FactoredLogits(inputs[f"{side}_states"], inputs[f"{side}_weight"], inputs[f"{side}_bias"])
