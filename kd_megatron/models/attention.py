"""Attention of queries, keys and values [B, L, H, d] -> [B, L, H, d], never storing anything of size L x L.

``sdpa`` is PyTorch's, which picks a fused kernel itself; ``flash`` is the package flash-attn (an optional extra), for
GPUs and for batches without padding.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kd_megatron.errors import ModelError

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's attention. ``mask`` is [B, 1, 1, L] bool, False at padding; ``dropout`` the probability."""
    queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # [B, H, L, d]
    return scaled_dot_product_attention(queries, keys, values, mask, dropout).transpose(1, 2)


def _flash() -> Attention:
    if not torch.cuda.is_available():
        raise ModelError(
            given="training.attention flash without a GPU", expected="sdpa", fix="set training.attention to sdpa"
        )
    try:
        attend: Callable[..., Tensor] = importlib.import_module("flash_attn").flash_attn_func
    except ImportError as error:
        raise ModelError(
            given=f"training.attention flash, but flash-attn cannot be imported: {error}",
            expected="the optional extra",
            fix="pip install 'kd_megatron[flash-attn]', or set training.attention to sdpa",
        ) from error

    def flash(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        if mask is not None:
            raise ModelError("training.attention flash with padding", "batches without padding", "use sdpa")
        return attend(queries, keys, values, dropout_p=dropout)

    return flash


def attention(name: str) -> Attention:
    """``"sdpa"`` or ``"flash"``. Raises `ModelError` when that cannot run here."""
    return sdpa if name == "sdpa" else _flash()
