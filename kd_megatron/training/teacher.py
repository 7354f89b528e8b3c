"""The frozen teacher of a run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from kd_megatron.engine.partition import PartitionedModel
from kd_megatron.models.float8 import Float8Errors
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.tensors import Batch, FactoredLogits, Taps


class Teacher:
    """Runs a frozen encoder. It stays outside the student's engine, so that no ZeRO stage partitions it.

    Args:
        encoder: the teacher, frozen and in eval mode.
        pieces: the encoder's model, when it is partitioned by an engine of its own. Calls are then collective.
        dropout: put it into training mode, for the objectives that reproduce the study's code. Its draws come from the
            generator that every step seeds, before the student's, so that they are the same when a run is resumed.
        float8_errors: of its taps, where it multiplies in float8.
    """

    def __init__(
        self,
        encoder: TappedEncoder,
        pieces: PartitionedModel | None = None,
        dropout: bool = False,
        float8_errors: Float8Errors | None = None,
    ) -> None:
        trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
        training = [name for name, m in encoder.named_modules() if m.training]
        if trainable or training:
            raise ValueError(f"the teacher must be frozen and in eval mode; found {(trainable + training)[:3]}")
        self.encoder, self.pieces, self.dropout = encoder.train(dropout), pieces, dropout
        self.float8_errors = float8_errors

    # Not inference_mode: autograd refuses to save inference tensors, and losses save the teacher's taps.
    @torch.no_grad()
    def __call__(self, batch: Batch, inputs: str) -> Taps:
        """What the objective needs of the teacher, for one micro-batch."""
        if self.encoder.training != self.dropout:
            mode = "training" if self.dropout else "eval"
            raise RuntimeError(f"the teacher left {mode} mode: dropout decides what its targets are")
        taps: Taps = self.run(self.encoder, batch, inputs)
        return replace(taps, logits=self._whole(taps.logits), all_logits=self._whole(taps.all_logits))

    def rehearse(self, batch: Batch, inputs: str) -> Taps:
        """What a call returns, with all that a call may run, for a batch that nobody trains on."""
        return self(batch, inputs)

    def run(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """``compute(*inputs)``, which calls modules of the teacher, with their weights at hand."""
        return compute(*inputs) if self.pieces is None else self.pieces.run(compute, *inputs)

    def _whole(self, logits: FactoredLogits | None) -> FactoredLogits | None:
        """With a copy of the head's weights where the teacher's are in pieces: the loss reads them later."""
        if logits is None or self.pieces is None:
            return logits
        bias = None if logits.bias is None else self.pieces.whole(logits.bias)
        return replace(logits, weight=self.pieces.whole(logits.weight), bias=bias)

    @property
    def num_parameters(self) -> int:
        """Of the whole teacher, as far as it is needed."""
        if self.pieces is not None:
            return self.pieces.num_parameters()
        return sum(parameter.numel() for parameter in self.encoder.parameters())

    def close(self) -> None:
        """Give back what it holds; it is not called after this."""
        if self.pieces is not None:
            self.pieces.close()
