"""Steps that the reference kernels share.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # queries and keys of one model


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any tensor is float64, otherwise float32: no loss is computed in less."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def split_heads(tap: Tensor, num_heads: int) -> Tensor:
    """Split a projection [B, L, H, d] into ``num_heads`` heads of its D features: [B, R, L, D/R].

    The heads of the model are first put back side by side, [B, L, D]: relation head r is then features
    r * D/R to (r + 1) * D/R - 1 of every position. (Reshaping [B, H, L, d] directly mixes positions.)
    """
    return tap.flatten(2).unflatten(2, (num_heads, -1)).transpose(1, 2)


def zero_padding(tap: Tensor, valid: Tensor | None) -> Tensor:
    """The tap [B, L, H, d] with zeros at padding, so that whatever padding holds, NaN too, gets a gradient of 0."""
    return tap if valid is None else tap.masked_fill(~valid[:, :, None, None], 0.0)


def scaled_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products ``queries keys^T / sqrt(d)`` of [B, R, L, d] tensors: [B, R, L, L]."""
    return (queries @ keys.transpose(-1, -2)) * queries.shape[-1] ** -0.5


@contextmanager
def products_of_bfloat16(*tensors: Tensor) -> Iterator[None]:
    """Let float32 products on a CPU read their factors as bfloat16, where all ``tensors`` are; sums stay in float32.

    What was bfloat16 loses nothing by it, and gradients in between are rounded as a GPU's kernels round them. oneDNN
    then makes the products; on a processor where it has no such instructions for float32 tensors (AMX has) they are
    float32 as before, and still twice as fast as those of the library that PyTorch takes otherwise.
    """
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if not all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors):
        yield
        return
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
