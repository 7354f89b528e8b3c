"""What is measured: a kernel at a shape, its inputs, and its loss through any backend of the kernel's door."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


class Case(ABC):
    """A kernel at a shape. ``terms`` are what its door returns, as one vector; ``weights`` add them up to a loss."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> str:
        """The sizes, as a row of a table has them."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Positions of one call, for tokens per second."""

    @property
    @abstractmethod
    def eager_bytes(self) -> float:
        """About what eager allocates above the inputs, in float32: whether a machine can run it at all."""

    @property
    def weights(self) -> tuple[float, ...]:
        """One per term, unequal, so that a gradient at the wrong term shows."""
        return (1.0,)

    @abstractmethod
    def backends(self) -> Sequence[str]:
        """The keys of the door's BACKENDS."""

    @abstractmethod
    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
        """Random inputs; those of the student, whose names begin with ``student``, require a gradient."""

    @abstractmethod
    def terms(self, inputs: Mapping[str, Tensor], backend: str) -> Tensor:
        """The losses that the door returns for ``inputs``, [number of terms]."""
