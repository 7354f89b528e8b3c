"""What a training step of the study's own code computes, counted kernel by kernel: matrix products, and bytes moved.

The modules here do, operation by operation, what the code of Bui et al. 2024 does (read in their repository on GitHub,
MinhDucBui/revisiting_distillation): eager attention that keeps scores, queries, keys and values of every layer; the MLM
head of both models at the masked positions, whether the arm reads it or not (``sparse_mask_prediction``, on by
default); a whole teacher with dropout; losses written out in PyTorch. They have no weights: on PyTorch's device
``meta`` a step of any size has shapes alone.

Left out, alike in all arms: the pooler (one row of 128), the optimizer (1 % of the bytes) and what the host does.

Shapes: B batch, L length, K masked positions, D hidden size, H heads, d head size, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PretrainedConfig

from kd_megatron.gpus import Gpu

NOWHERE = torch.device("meta")
DROPOUT = 0.1
MICRO_BATCH, LENGTH, MASKED = 256, 128, 19  # of the study: 15 % of 128, at most 20


@dataclass(frozen=True)
class Counted:
    """One micro-batch, forward and backward."""

    kernels: list[tuple[float, float]]  # (FLOPs of matrix products, bytes read and written) of each
    num_tokens: int

    @property
    def flops_per_token(self) -> float:
        """Of matrix products."""
        return math.fsum(flops for flops, _ in self.kernels) / self.num_tokens

    @property
    def bytes_per_token(self) -> float:
        """Read and written by all kernels, each for itself."""
        return math.fsum(moved for _, moved in self.kernels) / self.num_tokens

    def tokens_per_second(self, gpu: Gpu) -> float:
        """At the data sheet's rates in 16 bits: each kernel takes what its products or its bytes take, the longer."""
        longest = (max(flops / gpu.half_flops, moved / gpu.bytes_per_second) for flops, moved in self.kernels)
        return self.num_tokens / math.fsum(longest)


class Kernels(TorchDispatchMode):
    """Lists the operations that make or change a tensor, as kernels that share nothing: eager code on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _tensors(results)
        known = {tensor.untyped_storage()._cdata for tensor in read}
        if function._schema.is_mutable or any(tensor.untyped_storage()._cdata not in known for tensor in written):
            count = flop_registry.get(function._overloadpacket)
            flops = count(*args, **kwargs, out_val=results) if count else 0
            self.found.append((float(flops), float(sum(map(_size, [*read, *written])))))
        return results


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of what is there: an expanded dimension is read from the cache."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count(arm: str, student: PretrainedConfig, teacher: PretrainedConfig) -> Counted:
    """One micro-batch of ``arm``, a key of `LOSSES`, in float16."""
    distils = arm != "scratch"
    with NOWHERE:
        models = [Model(config, distils).half() for config in ((student, teacher) if distils else (student,))]
        ids = torch.zeros(MICRO_BATCH, LENGTH, dtype=torch.int64)
        slots = torch.zeros(MICRO_BATCH * MASKED, dtype=torch.int64)
        padding = torch.zeros(MICRO_BATCH, 1, 1, LENGTH, dtype=torch.float16)
    with Kernels() as kernels:
        outputs = [models[0](ids, slots, padding)]
        with torch.no_grad():
            outputs += [frozen(ids, slots, padding) for frozen in models[1:]]
        LOSSES[arm](*outputs, slots).backward()
    return Counted(kernels.found, MICRO_BATCH * LENGTH)


@dataclass(frozen=True)
class Outputs:
    """What the study's models return in every arm."""

    logits: Tensor  # [B * K, V]
    scores: list[Tensor]  # of each layer, before the softmax: [B, H, L, L]
    projections: list[tuple[Tensor, Tensor, Tensor]]  # queries, keys, values of each layer: [B, H, L, d]
    hidden: Tensor  # the last: [B, L, D]


class Model(nn.Module):
    """Embeddings, layers, MLM head.

    The code of No-KD is another than that of distillation: no layer norm after the embeddings, and the bias before a
    GELU is added by a kernel of its own (its class ``LinearActivation``, no longer compiled).
    """

    def __init__(self, config: PretrainedConfig, distils: bool) -> None:
        super().__init__()
        width, self.distils = config.hidden_size, distils
        self.words = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(config, distils) for _ in range(config.num_hidden_layers))
        self.transform, self.head_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, ids: Tensor, slots: Tensor, padding: Tensor) -> Outputs:
        """Run everything, used or not."""
        embedded = self.words(ids) + self.positions(torch.zeros_like(ids)) + self.segments(torch.zeros_like(ids))
        states = dropped(self.norm(embedded) if self.distils else embedded)
        scores, projections = [], []
        for layer in self.layers:
            states, its_scores, its_projections = layer(states, padding)
            scores.append(its_scores)
            projections.append(its_projections)
        rows = states.flatten(0, 1)[slots]
        rows = self.head_norm(functional.gelu(self.transform(rows)))
        return Outputs(functional.linear(rows, self.words.weight, self.bias), scores, projections, states)


class Layer(nn.Module):
    """Attention written out, and the feed-forward network."""

    def __init__(self, config: PretrainedConfig, distils: bool) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads, self.distils = config.num_attention_heads, distils
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, states: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Next states, scores before the softmax, and projections."""
        queries, keys, values = (
            project(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.size(-1)) + padding
        context = dropped(scores.softmax(-1)) @ values
        attended = dropped(self.output(context.transpose(1, 2).flatten(2)))
        states = self.norms[0](states + attended * 1.0 / 1.0)  # by a probability to keep the layer, which is 1
        widened = self.widen(states) if self.distils else functional.linear(states, self.widen.weight) + self.widen.bias
        fed = dropped(self.narrow(functional.gelu(widened)))
        return self.norms[1](states + fed * 1.0 / 1.0), scores, (queries, keys, values)


def dropped(tensor: Tensor) -> Tensor:
    """Dropout by one kernel, as on a GPU; elsewhere PyTorch takes several operations."""
    output: Tensor = torch.native_dropout(tensor, DROPOUT, train=True)[0]
    return output


def _scratch(student: Outputs, targets: Tensor) -> Tensor:
    return functional.cross_entropy(student.logits, targets)


def _vanilla_kd(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """The soft cross-entropy is averaged over the vocabulary as well."""
    likelihood = (student.logits / 1.0).log_softmax(-1)
    soft = (-(teacher.logits / 1.0).softmax(-1) * likelihood).mean()
    return soft + _scratch(student, targets)


def _minilm(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """Relations of the last layers' projections by attention heads. The MLM loss is computed for the log."""
    _scratch(student, targets)
    losses = []
    for of_student, of_teacher in zip(student.projections[-1], teacher.projections[-1], strict=True):
        likelihood = _relation_scores(of_student).log_softmax(-1)
        losses.append(functional.kl_div(likelihood, _relation_scores(of_teacher).softmax(-1), reduction="sum") / 1.0)
    return torch.stack(losses).sum()


def _relation_scores(projection: Tensor) -> Tensor:
    """Both sides are made contiguous, each for itself."""
    left, right = (projection.flatten(0, 1) for _ in range(2))
    return torch.bmm(left, right.transpose(1, 2)) / math.sqrt(left.size(-1))


def _tinybert(student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
    """Scores of the first and the last layer, and the last hidden states. The MLM loss is computed for the log."""
    _scratch(student, targets)
    of_student, of_teacher = (_without_padding(scores[-1]).float() for scores in (student.scores, teacher.scores))
    hidden = functional.mse_loss(student.hidden, teacher.hidden)
    return (
        functional.mse_loss(student.scores[0], teacher.scores[0]) + functional.mse_loss(of_student, of_teacher) + hidden
    )


def _without_padding(scores: Tensor) -> Tensor:
    return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "scratch": _scratch,
    "vanilla_kd": _vanilla_kd,
    "minilm": _minilm,
    "tinybert": _tinybert,
}
