"""One layer of a BERT-like encoder, run by us on the modules (and so with the parameter names) of Hugging Face.

BERT, RoBERTa and their kin share these modules. Running them here makes every tap a plain output, lets a model stop in
the middle of a layer, and keeps Python out of what is compiled. Tests hold the outputs to the library's, bit for bit.

Shapes: B batch, L length, D hidden size, H attention heads, d head size.
"""

from typing import Any

from torch import Tensor, nn

from kd_megatron.models.attention import Attention
from kd_megatron.tensors import RELATIONS, Relation

_MODULES: dict[Relation, str] = {"queries": "query", "keys": "key", "values": "value"}


def project(layer: Any, states: Tensor, relation: Relation) -> Tensor:
    """Queries, keys or values of ``layer``: its input [B, L, D] -> [B, L, H, d]."""
    attention = layer.attention.self
    projected: Tensor = getattr(attention, _MODULES[relation])(states)
    return projected.unflatten(-1, (attention.num_attention_heads, attention.attention_head_size))


def run_layer(layer: Any, states: Tensor, mask: Tensor | None, attend: Attention) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The whole layer: (its output [B, L, D], (queries, keys, values), each [B, L, H, d]).

    Args:
        layer: a `BertLayer`, `RobertaLayer` or one of their kin.
        states: its input, [B, L, D].
        mask: [B, 1, 1, L] bool, False at padding; None where there is none.
    """
    queries, keys, values = (project(layer, states, relation) for relation in RELATIONS)
    dropout = layer.attention.self.dropout.p if layer.training else 0.0
    context = attend(queries, keys, values, mask, dropout)
    attended = layer.attention.output(context.flatten(2), states)
    return layer.output(layer.intermediate(attended), attended), (queries, keys, values)


def layers_of(base_model: nn.Module) -> nn.ModuleList:
    """The layers of a model's encoder, in order."""
    layers: nn.ModuleList = base_model.encoder.layer  # type: ignore[union-attr, assignment]
    return layers
