"""Queries, keys, values and hidden states of named layers, as outputs of a Hugging Face encoder's forward.

Nothing is computed that is not asked for: the model stops at the highest tap, in the middle of a layer where only
projections of that layer are wanted, and the MLM head runs on the masked slots or not at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from kd_megatron.errors import ModelError
from kd_megatron.models.layers import attention, layers_of, project, run_layer, sdpa
from kd_megatron.tensors import RELATIONS, Batch, FactoredLogits, Needs, Relation, Taps

HEADS = {
    "bert": "cls",
    "roberta": "lm_head",
    "xlm-roberta": "lm_head",
    "camembert": "lm_head",
}  # model type -> MLM head


def transform(head: nn.Module, states: Tensor) -> Tensor:
    """What an MLM head makes of hidden states [..., D] before its decoder."""
    of: Any = head
    if hasattr(of, "predictions"):  # BERT
        transformed: Tensor = of.predictions.transform(states)
    else:  # RoBERTa and its kin
        transformed = of.layer_norm(functional.gelu(of.dense(states)))
    return transformed


def token_types(ids: Tensor) -> Tensor | None:
    """The token types of ``ids`` [B, L], which are all 0: [1, 1] on a GPU; None on a CPU, where the model takes [B, L].

    On a GPU the backward pass of a lookup adds up one by one what equal indices get, and here B * L indices are equal;
    that of a broadcast is a sum. On a CPU a lookup costs no more, and recorded curves have its order of summation.
    """
    return ids.new_zeros(1, 1) if ids.is_cuda else None


@dataclass(frozen=True)
class Execution:
    """How layers run: the same for all arms, and for teacher and student."""

    attention: str = "sdpa"
    compile: bool = False  # by torch.compile: the code of one layer, for all of them, and of the MLM head
    recompute: bool = False  # keep of a layer its input alone, and run it again in the backward pass


DEFAULT = Execution()


@contextmanager
def plain_attention(*encoders: "TappedEncoder") -> Iterator[None]:
    """Let ``encoders`` attend by PyTorch's own attention in the ``with`` block, which takes every dtype and device."""
    kept = [encoder.attend for encoder in encoders]
    for encoder in encoders:
        encoder.attend = sdpa
    try:
        yield
    finally:
        for encoder, attend in zip(encoders, kept, strict=True):
            encoder.attend = attend


class TappedEncoder(nn.Module):
    """A Hugging Face masked-language model that returns exactly what `Needs` names.

    Args:
        model: an ``...ForMaskedLM`` model of a type in `HEADS`.
        whole: run all layers, though nobody reads the upper ones.
    """

    def __init__(
        self, model: PreTrainedModel, needs: Needs, whole: bool = False, execution: Execution = DEFAULT
    ) -> None:
        super().__init__()
        if model.config.model_type not in HEADS:
            raise ModelError(
                given=f"model type {model.config.model_type!r}",
                expected=f"one of {', '.join(sorted(HEADS))}",
                fix="use such an encoder, or name the type's MLM head in kd_megatron/models/taps.py",
            )
        self.model, self.needs, self.whole = model, needs, whole
        self.execution = execution
        self.attend = attention(execution.attention)
        # Not the look-up of embeddings: its gradient by compiled code adds with atomics, in an order of the day.
        self._run_layer = torch.compile(run_layer, dynamic=False) if execution.compile else run_layer
        self._transform = torch.compile(transform, dynamic=False) if execution.compile else transform

    @property
    def decoder(self) -> nn.Linear:
        """The last layer of the MLM head: states [..., D] -> logits [..., V]."""
        decoder = self.model.get_output_embeddings()
        assert isinstance(decoder, nn.Linear)
        return decoder

    def head(self, states: Tensor) -> FactoredLogits:
        """The MLM head: hidden states [..., D] -> logits [..., V], all but the decoder's product made."""
        transformed = self._transform(getattr(self.model, HEADS[self.model.config.model_type]), states)
        return FactoredLogits(transformed, self.decoder.weight, self.decoder.bias)

    def read_directly(self) -> list[nn.Parameter]:
        """Parameters that a loss reads from `FactoredLogits`, not the layer that owns them in its forward."""
        return list(self.decoder.parameters()) if self.needs.head else []

    @property
    def embeddings(self) -> nn.Parameter:
        """The input embeddings, [V, D]."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, batch: Batch, inputs: str = "masked") -> Taps:
        """Run the encoder on ``batch.input_ids`` (``inputs="masked"``) or ``batch.clean_ids`` (``"clean"``)."""
        needs = self.needs
        base: Any = self.model.base_model
        taps = Taps()
        layers = layers_of(base)
        num_reached = needs.num_whole_layers(len(layers))
        num_whole = len(layers) if self.whole else num_reached
        mask = None if batch.attention_mask is None else batch.attention_mask[:, None, None, :]
        ids = batch.input_ids if inputs == "masked" else batch.clean_ids
        states = base.embeddings(input_ids=ids, token_type_ids=token_types(ids))
        if 0 in needs.hidden:
            taps.hidden[0] = states
        for number, layer in enumerate(layers, start=1):
            if number > num_whole:
                self._keep(taps, number, project(layer, states, needs.relations(number)))
                break
            # Layers above the highest that a loss reaches whole have no backward pass to be run again in.
            is_run_again = self.execution.recompute and number <= num_reached and torch.is_grad_enabled()
            run = self._run_again if is_run_again else self._run_layer
            states, projections = run(layer, states, mask, self.attend)
            self._keep(taps, number, dict(zip(RELATIONS, projections, strict=True)))
            if number in needs.hidden:
                taps.hidden[number] = states
        return replace(
            taps,
            logits=self.head(batch.at_slots(states)) if needs.logits else None,
            all_logits=self.head(states) if needs.all_logits else None,
        )

    def _run_again(self, *inputs: Any) -> Any:
        """One layer of which nothing but inputs and outputs is kept; dropout draws the same numbers again."""
        # To its end also the second time: stopping short would save no product, and leave ZeRO-3's hooks half-way.
        return checkpoint(self._run_layer, *inputs, use_reentrant=False, early_stop=False)

    def _keep(self, taps: Taps, number: int, projections: dict[Relation, Tensor]) -> None:
        """Those of a layer's projections that are asked for."""
        for name in self.needs.relations(number):
            getattr(taps, name)[number] = projections[name]
