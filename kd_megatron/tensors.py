"""The tensors that travel between data, models and objectives, by name.

Shapes: B batch, L length, K masked positions per sequence, N = B * K, D hidden size, H attention heads,
d head size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # label of a masked slot that holds no target

Relation = Literal["queries", "keys", "values"]
RELATIONS: tuple[Relation, ...] = ("queries", "keys", "values")
OF_LAYERS = (*RELATIONS, "hidden")  # what is asked for, and returned, layer by layer


@dataclass(frozen=True)
class Batch:
    """One micro-batch. The number K of masked slots is the same in every batch, so shapes never change."""

    input_ids: Tensor  # [B, L] int64, masked
    clean_ids: Tensor  # [B, L] int64, before masking
    attention_mask: Tensor | None  # [B, L] bool, False is padding; None: no padding anywhere
    masked_positions: Tensor  # [B, K] int64
    labels: Tensor  # [B, K] int64, IGNORED where a slot is not used
    sample_ids: Tensor  # [B] int64, position of the sample in the run's data order

    def to(self, device: torch.device | str) -> Self:
        """The batch with every tensor on ``device``; from page-locked memory without waiting for the copies."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The batch in page-locked memory, from which a GPU copies while the host goes on."""
        return self._each(lambda tensor: tensor.pin_memory())

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Keep its memory, which another stream took, until what ``stream`` computes with it is done."""
        for one in fields(self):
            if (part := getattr(self, one.name)) is not None:
                part.record_stream(stream)

    def at(self, rows: Tensor) -> Self:
        """Those of its samples."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Any], Any]) -> Self:
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: v if v is None else change(v) for k, v in tensors.items()}
        return type(self)(**changed)

    def valid(self) -> Tensor:
        """[B, L] bool: True at real tokens."""
        if self.attention_mask is not None:
            return self.attention_mask
        return torch.ones_like(self.input_ids, dtype=torch.bool)

    def at_slots(self, states: Tensor) -> Tensor:
        """The rows of ``states`` [B, L, D] at the masked positions: [B, K, D]."""
        return states.gather(1, self.masked_positions.unsqueeze(-1).expand(-1, -1, states.size(-1)))


@dataclass(frozen=True)
class FactoredLogits:
    """Logits over the vocabulary before they are multiplied out: ``states @ weight^T + bias``.

    What is multiplied out, and when, is the kernel's choice: all rows at once are the largest tensor of a step.
    """

    states: Tensor  # [..., D], what the last linear layer of the MLM head reads
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]

    def dense(self) -> Tensor:
        """The logits, [..., V], in the dtype of the states."""
        return functional.linear(self.states, self.weight, self.bias)

    def rows(self) -> Self:
        """The same with the states as rows, [N, D]."""
        return type(self)(self.states.flatten(0, -2), self.weight, self.bias)


@dataclass(frozen=True)
class TopLogits:
    """A teacher's distribution at one temperature by its k likeliest tokens; the others share what is left."""

    log_probabilities: Tensor  # [..., k] float32, at `temperature`
    token_ids: Tensor  # [..., k] int64
    log_rest: Tensor  # [...] float32, of the probability of all other tokens together
    temperature: float

    def rows(self) -> Self:
        """The same with all leading dimensions as one."""
        return type(self)(
            self.log_probabilities.flatten(0, -2),
            self.token_ids.flatten(0, -2),
            self.log_rest.flatten(),
            self.temperature,
        )


@dataclass(frozen=True)
class Needs:
    """What an objective asks of one model. Layers are 1-based; hidden state 0 is the embedding output."""

    queries: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    logits: bool = False  # of the MLM head, at the masked slots
    all_logits: bool = False  # of the MLM head, at every position

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers of which any of queries, keys or values is asked for."""
        return tuple(sorted({*self.queries, *self.keys, *self.values}))

    def relations(self, layer: int) -> tuple[Relation, ...]:
        """Which of queries, keys and values are asked for of ``layer``."""
        return tuple(relation for relation in RELATIONS if layer in getattr(self, relation))

    @property
    def head(self) -> bool:
        """Whether the MLM head runs at all."""
        return self.logits or self.all_logits

    def num_whole_layers(self, num_layers: int) -> int:
        """How many of a model's ``num_layers`` layers must run whole. Of one more, projections may be needed."""
        if self.head:
            return num_layers
        return max((0, *self.hidden, *(layer - 1 for layer in self.attention_layers)))

    def united(self, *others: "Needs") -> "Needs":
        """What this or any of ``others`` asks for."""
        every = (self, *others)
        layers = {kind: tuple(sorted({n for needs in every for n in getattr(needs, kind)})) for kind in OF_LAYERS}
        heads = [any(needs.logits for needs in every), any(needs.all_logits for needs in every)]
        return Needs(**layers, logits=heads[0], all_logits=heads[1])


@dataclass(frozen=True)
class Taps:
    """What a model returns: exactly what `Needs` asked for, nothing else."""

    queries: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, L, H, d], the projection before attention
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, L, D]
    logits: FactoredLogits | None = None  # [B, K, V] at the masked slots
    top_logits: TopLogits | None = None  # [B, K]: stands for a teacher's `logits` where those come from a cache
    all_logits: FactoredLogits | None = None  # [B, L, V]

    def only(self, needs: Needs) -> "Taps":
        """Of outputs that several share, what ``needs`` asks for."""
        layers = {
            kind: {layer: tap for layer, tap in getattr(self, kind).items() if layer in getattr(needs, kind)}
            for kind in OF_LAYERS
        }
        return Taps(
            **layers,
            logits=self.logits if needs.logits else None,
            top_logits=self.top_logits if needs.logits else None,
            all_logits=self.all_logits if needs.all_logits else None,
        )


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model: what an objective may know of it."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
