"""The frozen teacher of a run."""

import torch

from kd_megatron.models.taps import TappedEncoder
from kd_megatron.tensors import Batch, Taps


class Teacher:
    """Runs a frozen encoder. It stays outside the student's engine, so that no ZeRO stage partitions it."""

    def __init__(self, encoder: TappedEncoder) -> None:
        trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
        training = [name for name, m in encoder.named_modules() if m.training]
        if trainable or training:
            raise ValueError(f"the teacher must be frozen and in eval mode; found {(trainable + training)[:3]}")
        self.encoder = encoder

    # Not inference_mode: autograd refuses to save inference tensors, and losses save the teacher's taps.
    @torch.no_grad()
    def __call__(self, batch: Batch, inputs: str) -> Taps:
        """What the objective needs of the teacher, for one micro-batch."""
        if self.encoder.training:
            raise RuntimeError("the teacher left eval mode: its dropout would change the targets")
        return self.encoder(batch, inputs)

    def close(self) -> None:
        """Give back what it holds; it is not called after this."""
