"""A batch is copied on a stream of its own, and the computation waits for it: by a stand-in for CUDA's streams."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_megatron.tensors import Batch
from kd_megatron.training.cached_teacher import KeptRows, LookedUp
from kd_megatron.training.side_copy import SideCopy

IDS = torch.arange(6).view(2, 3)


def batch() -> LookedUp:
    kept = KeptRows(torch.zeros(2, 4, dtype=torch.uint8), np.arange(2), np.ones(2, np.bool_), 0)
    return LookedUp(IDS, IDS + 1, None, IDS[:, :1], IDS[:, 1:2], torch.arange(2), kept=kept)


def test_on_a_cpu_nothing_happens() -> None:
    here = SideCopy(torch.device("cpu"))(batch())
    assert torch.equal(here.input_ids, IDS)


def test_the_copy_is_waited_for_and_its_memory_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

    computing = Stream("computing")

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        events.append(f"on {stream.name}")
        yield
        events.append(f"off {stream.name}")

    def bring(self: Batch, device: torch.device) -> Batch:
        events.append("copy")
        return self

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: events.append(f"kept for {stream.name}"))
    monkeypatch.setattr(Batch, "to", bring)
    SideCopy(torch.device("cuda"))(batch())
    num_tensors = 6  # five of the batch, and the rows
    expected = ["on copying", "copy", "off copying", "computing waits for copying"]
    assert events == expected + ["kept for computing"] * num_tensors
