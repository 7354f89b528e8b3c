"""Batches on their way to a GPU: a stream of their own, and no more of them than memory is meant for.

There is no GPU here: streams and events are stood in for by ones that write down what is asked of them.
"""

from typing import Any

import pytest
import torch

from kd_megatron.teacher_cache.store import FillCost
from kd_megatron.tensors import Batch
from kd_megatron.training import copying
from kd_megatron.training.cached_teacher import JUDGED_ROWS, ReadingSpeed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: Any) -> None:
        self.log.append(f"off {self.name}")


class OnItsWay:
    """A batch that says where it goes."""

    def __init__(self, number: int, log: list[str]) -> None:
        self.number, self.log = number, log

    def to(self, device: torch.device) -> "OnItsWay":
        self.log.append(f"copy {self.number} to {device}")
        return self

    def used_on(self, stream: Stream) -> None:
        self.log.append(f"keep {self.number} for {stream.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    computing, numbers = Stream("computing", said), iter(range(100))

    class Event:
        def __init__(self) -> None:
            self.number = next(numbers)

        def record(self, stream: Stream) -> None:
            said.append(f"event {self.number} on {stream.name}")

        def synchronize(self) -> None:
            said.append(f"host waits for event {self.number}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying", said))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return said


def test_a_copy_is_on_its_own_stream_and_what_computes_waits_for_it(log: list[str]) -> None:
    with copying.DeviceCopies(GPU).on_device(OnItsWay(0, log)):
        log.append("compute")
    assert log == [
        "on copying", "copy 0 to cuda", "off copying", "computing waits for copying", "keep 0 for computing",
        "compute", "event 0 on computing",
    ]  # fmt: skip


def test_the_host_is_no_more_than_two_batches_ahead(log: list[str]) -> None:
    copies = copying.DeviceCopies(GPU)
    for number in range(4):
        with copies.on_device(OnItsWay(number, log)):
            pass
    waits = {line: log.index(line) for line in log if line.startswith("host")}
    assert list(waits) == ["host waits for event 0", "host waits for event 1"]
    assert log.index("copy 1 to cuda") < waits["host waits for event 0"] < log.index("copy 2 to cuda")


def test_without_a_gpu_a_batch_is_handed_over() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    batch = Batch(ids, ids, None, ids, ids, ids[0])
    with copying.DeviceCopies(CPU).on_device(batch) as here:
        assert here.input_ids is ids


@pytest.mark.parametrize(
    ("rows", "read", "teacher", "warned"),
    [
        (JUDGED_ROWS, 0.02, 0.01, True),
        (JUDGED_ROWS, 0.01, 0.02, False),
        (JUDGED_ROWS - 1, 0.02, 0.01, False),
        (JUDGED_ROWS, 0.02, 0.0, False),  # of a store that an earlier version filled
    ],
)
def test_a_cache_that_is_slower_than_the_teacher_is_said_once(
    rows: int, read: float, teacher: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    speed, cost = ReadingSpeed(), FillCost(seconds=10.0, rows=100, teacher_seconds=100 * teacher)
    assert speed.seconds_per_row is None
    speed.add(rows * read, rows)
    assert speed.seconds_per_row == pytest.approx(read)
    speed.warn_if_slower(cost)
    speed.warn_if_slower(cost)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("reading a window takes 20 ms, the teacher 10 ms; remove teacher.cache") == warned
