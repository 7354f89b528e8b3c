"""One layer of a BERT-like encoder, run by us on the modules (and so with the parameter names) of Hugging Face.

BERT, RoBERTa and their kin share these modules. Running them here makes every tap a plain output, lets a model stop in
the middle of a layer, and keeps Python out of what is compiled. Tests hold the outputs to the library's, bit for bit.

Shapes: B batch, L length, D hidden size, H attention heads, d head size.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kd_megatron.errors import ModelError
from kd_megatron.models import by_products
from kd_megatron.models.float8_linear import outputs_of
from kd_megatron.tensors import RELATIONS, Relation

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
_MODULES: dict[Relation, str] = {"queries": "query", "keys": "key", "values": "value"}


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's attention, or `by_products` where that is faster.

    ``mask`` is [B, 1, 1, L] bool, False at padding; ``dropout`` the probability.
    """
    queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # [B, H, L, d]
    if dropout == 0.0 and by_products.is_faster(queries):
        context: Tensor = by_products.attend(queries, keys, values, mask)
    else:
        context = scaled_dot_product_attention(queries, keys, values, mask, dropout)
    return context.transpose(1, 2)


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
        if queries.dtype not in (torch.bfloat16, torch.float16):
            raise ModelError(
                given=f"training.attention flash in {str(queries.dtype).removeprefix('torch.')}",
                expected="training.precision and teacher.precision bf16 (or fp8): flash-attn has no float32",
                fix="set training.attention to sdpa, or the precisions to bf16",
            )
        return attend(queries, keys, values, dropout_p=dropout)

    return flash


def attention(name: str) -> Attention:
    """``"sdpa"`` or ``"flash"``. Raises `ModelError` when that cannot run here."""
    return sdpa if name == "sdpa" else _flash()


def project(layer: Any, states: Tensor, relations: Sequence[Relation]) -> dict[Relation, Tensor]:
    """Those of queries, keys and values of ``layer`` that are named: its input [B, L, D] -> [B, L, H, d]."""
    attention = layer.attention.self
    projected = outputs_of([getattr(attention, _MODULES[relation]) for relation in relations], states)
    heads = (attention.num_attention_heads, attention.attention_head_size)
    return {relation: made.unflatten(-1, heads) for relation, made in zip(relations, projected, strict=True)}


def run_layer(layer: Any, states: Tensor, mask: Tensor | None, attend: Attention) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The whole layer: (its output [B, L, D], (queries, keys, values), each [B, L, H, d]).

    Args:
        layer: a `BertLayer`, `RobertaLayer` or one of their kin.
        states: its input, [B, L, D].
        mask: [B, 1, 1, L] bool, False at padding; None where there is none.
    """
    queries, keys, values = project(layer, states, RELATIONS).values()
    dropout = layer.attention.self.dropout.p if layer.training else 0.0
    context = attend(queries, keys, values, mask, dropout)
    attended = layer.attention.output(context.flatten(2), states)
    return layer.output(layer.intermediate(attended), attended), (queries, keys, values)


def layers_of(base_model: nn.Module) -> nn.ModuleList:
    """The layers of a model's encoder, in order."""
    layers: nn.ModuleList = base_model.encoder.layer  # type: ignore[union-attr, assignment]
    return layers
