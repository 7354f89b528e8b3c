"""The products of both models' heads, by chunks of rows: logits, and what their gradient makes of the head's tensors.

Shapes: N rows, C rows of a chunk, D hidden size (of either model), V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from kd_megatron.tensors import FactoredLogits

ROW_ALIGNMENT = 64  # elements: rows of 30,522 without a gap start anywhere, and the product that writes them is slower


class Head:
    """The head of one model, with the memory into which its logits are multiplied out, chunk after chunk."""

    def __init__(self, logits: FactoredLogits, used: Tensor, dtype: torch.dtype, chunk_rows: int) -> None:
        wide_or_narrow = factors_dtype(logits, dtype)
        self.dtype, self.chunk_rows = dtype, chunk_rows
        self._states, self._used = logits.states, used
        self.weight = logits.weight.to(wide_or_narrow)  # a copy, for the length of the call, only where it is widened
        self.bias = logits.bias
        self._logits = rows_of_vocabulary(chunk_rows, logits.weight, dtype)

    def states(self, chunk: slice) -> Tensor:
        """[C, D]: zeros at rows not used, whatever stands there."""
        return torch.where(self._used[chunk, None], self._states[chunk], 0.0).to(self.weight.dtype)

    def __getitem__(self, chunk: slice) -> Tensor:
        """The logits of rows, [C, V]."""
        return self.logits(self.states(chunk))

    def logits(self, states: Tensor) -> Tensor:
        """[C, V], in the same memory at every call."""
        if self.bias is None:
            return self.without_bias(states)
        logits = self._logits[: states.shape[0]].copy_(self.bias)
        add_product(logits, states, self.weight.t())
        return logits

    def without_bias(self, states: Tensor) -> Tensor:
        """`logits` before the bias is added, in the same memory."""
        logits = self._logits[: states.shape[0]]
        put_product(logits, states, self.weight.t())
        return logits

    def padded_bias(self) -> Tensor | None:
        """[P], of the size that a row of logits has in memory; zeros behind the V tokens."""
        if self.bias is None:
            return None
        return functional.pad(self.bias.detach(), (0, self._logits.stride(0) - self.bias.shape[0]))


class Gradient:
    """Gradient of the student's tensors, in full precision; None for those that need none."""

    def __init__(
        self, student: FactoredLogits, needed: tuple[bool, bool, bool], dtype: torch.dtype, chunk_rows: int
    ) -> None:
        # What the first chunk contributes is put, not added; without rows there is none.
        make = torch.empty_like if student.states.shape[0] else torch.zeros_like
        self.states = make(student.states, dtype=dtype) if needed[0] else None
        self.weight = make(student.weight, dtype=dtype) if needed[1] else None
        bias = student.bias if needed[2] else None
        self.bias = None if bias is None else make(bias, dtype=dtype)
        self.needed = any(needed)
        narrow_dtype = factors_dtype(student, dtype)
        is_narrow = self.needed and narrow_dtype != dtype
        self.narrow = rows_of_vocabulary(chunk_rows, student.weight, narrow_dtype) if is_narrow else None  # [C, V]

    def add(self, chunk: slice, logits_gradient: Tensor, states: Tensor, weight: Tensor) -> None:
        """Add what a chunk contributes: its logits' gradient through ``states @ weight^T + bias``. The first is put.

        Args:
            logits_gradient: [C, V]: in full precision, or the first rows of `narrow`.
        """
        is_first = chunk.start == 0
        if self.bias is not None and is_first:
            torch.sum(logits_gradient, 0, dtype=self.bias.dtype, out=self.bias)
        elif self.bias is not None:
            self.bias += logits_gradient.sum(0, dtype=self.bias.dtype)
        factor = logits_gradient
        if self.narrow is not None and factor.dtype != self.narrow.dtype:
            factor = self.narrow[: states.shape[0]].copy_(logits_gradient)
        if self.states is not None:
            put_product(self.states[chunk], factor, weight)
        if self.weight is not None:
            put = put_product if is_first else add_product
            put(self.weight, factor.t(), states)


def factors_dtype(logits: FactoredLogits, dtype: torch.dtype) -> torch.dtype:
    """bfloat16 where a product of such matrices can be summed in float32: on a GPU; otherwise ``dtype`` itself."""
    is_bfloat16 = logits.states.dtype == logits.weight.dtype == torch.bfloat16
    return torch.bfloat16 if logits.weight.is_cuda and is_bfloat16 and dtype == torch.float32 else dtype


def put_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total = left @ right``, summed in the dtype of ``total`` also when the factors are narrower."""
    if left.dtype == total.dtype:
        torch.mm(left, right, out=total)
    else:
        torch.mm(left, right, out_dtype=total.dtype, out=total)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, summed as in `put_product`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def rows_of_vocabulary(num_rows: int, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for [num_rows, V], of one size whatever the batch holds: an allocator can give the same again."""
    vocab_size = weight.shape[0]
    padded_size = -(-vocab_size // ROW_ALIGNMENT) * ROW_ALIGNMENT
    return torch.empty(num_rows, padded_size, dtype=dtype, device=weight.device)[:, :vocab_size]


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` rows from ``start`` to ``stop``; the last may be shorter."""
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
