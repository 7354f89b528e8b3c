"""Prepares the next steps' items in one background thread while the current step computes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
# Items under way or ready beside the one in use. One hides an item that takes less than a step; the second, one that
# takes longer now and then (cold pages of a shard). More would only hold memory.
DEPTH = 2


class Prefetcher(Generic[T]):
    """Items by index, the `DEPTH` after the last asked for under way or ready.

    ``make`` must be a pure function of the index: it also runs for indices that are then never asked for. Loading is
    numpy alone, whose array operations use the calling thread: no compute thread is taken from the step.

    Args:
        make: builds the item of an index; runs in the background thread only.
    """

    def __init__(self, make: Callable[[int], T], first: int) -> None:
        self._make = make
        # A thread begins on the first GPU, whatever this one uses: page-locking memory there would take memory of it.
        settle = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_initialized() else None
        self._worker = ThreadPoolExecutor(1, "prefetch", initializer=settle)
        self._ahead: deque[Future[T]] = deque()
        self._start(first)

    def get(self, index: int) -> T:
        """The item of ``index``. What ``make`` raised for it is raised here; asking again tries again."""
        if index != self._index:
            self._start(index)
        try:
            item = self._ahead[0].result()
        except BaseException:
            self._start(index)
            raise
        self._ahead.popleft()
        self._index += 1
        self._ahead.append(self._worker.submit(self._make, self._index + DEPTH - 1))
        return item

    def _start(self, index: int) -> None:
        """Begin anew at ``index``."""
        for item in self._ahead:
            item.cancel()
        self._index = index
        self._ahead = deque(self._worker.submit(self._make, index + ahead) for ahead in range(DEPTH))

    def close(self) -> None:
        """Drop what is prepared and end the thread. May be called twice."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
