"""What a training step of the study's own code computes, counted kernel by kernel: matrix products, and bytes moved.

The modules here do, operation by operation, what the code of Bui et al. 2024 does (read in their repository on GitHub,
MinhDucBui/revisiting_distillation): eager attention that keeps scores, queries, keys and values of every layer; the MLM
head of both models at the masked positions, whether the arm reads it or not (``sparse_mask_prediction``); a whole
teacher with dropout; losses written out in PyTorch (`eager_losses`). They have no weights: on PyTorch's device ``meta``
a step of any size has shapes alone.

PyTorch is that of the study's time. The study's requirements pin DeepSpeed 0.4.3, which imports ``torch._six``, gone in
PyTorch 2.0, and its code needs PyTorch 1.9; before 1.12 a linear layer on three dimensions added its bias by a kernel
of its own (pytorch/pytorch, pull requests 72728 and 74070). That it was before 1.12 is assumed: 1.12 and 1.13 are not
excluded.

Assumed: that the teacher's head, too, is at the masked positions alone. ``sparse_mask_prediction`` is the default for
students; the teacher's is in a ``bert_config.json`` that is not in the repository (`count`'s ``teacher_is_sparse``).

Left out, alike in all arms: the pooler (one row of 128) and the optimizer (1 % of the bytes), which would bring the
arms closer together. Left out and not alike: the host. In every micro-batch a distilling arm alone logs GPU scalars (5
calls of ``wandb.log`` in TinyBERT, 4 in MiniLM, 3 in Vanilla-KD) and looks a second time, for the teacher, for the
masked positions, which waits for the GPU.

Shapes: B batch, L length, K masked positions, D hidden size, H heads, d head size, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PretrainedConfig

from benchmarks.published_study.eager_losses import LOSSES, Outputs
from kd_megatron.machine.gpus import Gpu

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
        reads = not function._schema.name.endswith("_like")  # of such as zeros_like the shape alone is taken
        read, written = _tensors((args, kwargs)) if reads else [], _tensors(results)
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


def count(arm: str, student: PretrainedConfig, teacher: PretrainedConfig, teacher_is_sparse: bool = True) -> Counted:
    """One micro-batch of ``arm``, a key of `LOSSES`, in float16.

    Unless ``teacher_is_sparse``, the teacher's head is at all positions, of which the masked ones are chosen after it.
    """
    distils = arm != "scratch"
    with NOWHERE:
        models = [Model(student, distils).half()]
        if distils:
            models.append(Model(teacher, distils, teacher_is_sparse).half())
        ids = torch.zeros(MICRO_BATCH, LENGTH, dtype=torch.int64)
        slots = torch.zeros(MICRO_BATCH * MASKED, dtype=torch.int64)
        padding = torch.zeros(MICRO_BATCH, 1, 1, LENGTH, dtype=torch.float16)
    with Kernels() as kernels:
        outputs = [models[0](ids, slots, padding)]
        with torch.no_grad():
            outputs += [frozen(ids, slots, padding) for frozen in models[1:]]
        LOSSES[arm](*outputs, slots).backward()
    return Counted(kernels.found, MICRO_BATCH * LENGTH)


class Linear(nn.Linear):
    """As PyTorch before 1.12 computes it on three dimensions: the bias is added by a kernel of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Product, then bias."""
        assert self.bias is not None
        return functional.linear(input, self.weight).add_(self.bias)


class Model(nn.Module):
    """Embeddings, layers, MLM head.

    The code of No-KD is another than that of distillation: a layer norm after the last layer instead of one after the
    embeddings, a decoder without bias, and the bias before the head's GELU added by a kernel of its own (its class
    ``LinearActivation``, no longer compiled). Its layer norms before attention and feed-forward network instead of
    after them cost the same.
    """

    def __init__(self, config: PretrainedConfig, distils: bool, is_sparse: bool = True) -> None:
        super().__init__()
        width, self.distils, self.is_sparse = config.hidden_size, distils, is_sparse
        self.words = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        has_two_dimensions = distils and is_sparse
        self.transform = (nn.Linear if has_two_dimensions else Linear)(width, width)
        self.head_norm = nn.LayerNorm(width)
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
        states = states if self.distils else self.norm(states)
        return Outputs(self._logits(states, slots), scores, projections, states)

    def _logits(self, states: Tensor, slots: Tensor) -> Tensor:
        """At the masked positions, computed there alone or chosen from all."""
        rows = states.flatten(0, 1)[slots] if self.is_sparse else states
        rows = self.head_norm(functional.gelu(self.transform(rows)))
        if self.is_sparse:
            return functional.linear(rows, self.words.weight, self.bias if self.distils else None)
        logits = functional.linear(rows, self.words.weight).add_(self.bias)
        return logits.flatten(0, 1)[slots]


class Layer(nn.Module):
    """Attention written out, and the feed-forward network."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value, self.output = (Linear(width, width) for _ in range(4))
        self.widen, self.narrow = Linear(width, inner), Linear(inner, width)
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
        fed = dropped(self.narrow(functional.gelu(self.widen(states))))
        return self.norms[1](states + fed * 1.0 / 1.0), scores, (queries, keys, values)


def dropped(tensor: Tensor) -> Tensor:
    """Dropout by one kernel, as on a GPU; elsewhere PyTorch takes several operations."""
    output: Tensor = torch.native_dropout(tensor, DROPOUT, train=True)[0]
    return output
