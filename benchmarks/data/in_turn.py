"""Things timed in turn, round after round in one process, so that what slows the machine slows them all alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.rows import Row, timing_figures


def nothing() -> None:
    """Nothing to be done before."""


@dataclass(frozen=True)
class TurnTaker:
    """What one row measures."""

    name: str
    shape: str
    backend: str
    num_tokens: int  # handled by one call of ``work``
    work: Callable[[], object]
    ratio_to: str  # the backend of another case with the same name and shape
    before: Callable[[], object] = nothing  # called before ``work`` every time, not timed


def measure(cases: list[TurnTaker], num_rounds: int) -> list[Row]:
    """A row for each case, of ``num_rounds`` rounds; every other round goes backwards. One round more, not counted."""
    seconds = np.zeros((1 + num_rounds, len(cases)))
    for number in range(1 + num_rounds):
        forwards = range(len(cases))
        for index in forwards if number % 2 else reversed(forwards):
            cases[index].before()
            start = time.perf_counter()
            cases[index].work()
            seconds[number, index] = time.perf_counter() - start
    return [_row(index, cases, seconds[1:]) for index in range(len(cases))]


def _row(index: int, cases: list[TurnTaker], seconds: np.ndarray) -> Row:
    case = cases[index]
    places = [(other.name, other.shape, other.backend) for other in cases]
    reference = places.index((case.name, case.shape, case.ratio_to))
    return Row(
        name=case.name,
        backend=case.backend,
        shape=case.shape,
        dtype="uint16",  # of the ids on disk
        device="cpu",
        peak_mib=None,
        ratio_to=case.ratio_to,
        **timing_figures(seconds[:, index].tolist(), seconds[:, reference].tolist(), case.num_tokens),
    )
