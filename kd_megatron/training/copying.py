"""Batches go to the device beside what it computes, on a stream of their own.

On the computing stream a copy waits for the step before it and the next step for the copy: hidden states of a cached
teacher may be gigabytes a step. The host runs ahead of the device, so that a copy which nothing holds back is done when
its turn comes. How far ahead is bounded here: each copy under way takes memory of the device.
"""

import contextlib
from collections import deque
from collections.abc import Iterator

import torch

from kd_megatron.tensors import Batch

MOST_AHEAD = 2  # batches on the device: the one that is computed with, and the next


class DeviceCopies:
    """Copies batches to ``device``; where that is no GPU a batch is only handed over.

    Args:
        device: where the models are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._used: deque[torch.cuda.Event] = deque()  # recorded when the device has done with a batch

    @contextlib.contextmanager
    def on_device(self, batch: Batch) -> Iterator[Batch]:
        """``batch`` on the device, for what is computed with it in the block; best from page-locked memory."""
        if self._stream is None:
            yield batch.to(self.device)
            return
        while len(self._used) >= MOST_AHEAD:
            self._used.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            here = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        here.used_on(computing)
        yield here
        done = torch.cuda.Event()
        done.record(computing)
        self._used.append(done)
