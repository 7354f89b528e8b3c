"""Brings batches to the device beside what the device computes."""

import torch

from kd_megatron.tensors import Batch


class SideCopy:
    """Copies on a stream of its own: a batch crosses while the steps before it are still computed.

    On the stream of the computation a copy would wait for these steps, and they for nothing: with a teacher cache of
    hidden states, gigabytes a step. The host waits for neither. On a processor a batch is where it should be.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """``batch`` on the device, from page-locked memory; what is computed next waits until it is there."""
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            here = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        return here.kept_for(computing)
