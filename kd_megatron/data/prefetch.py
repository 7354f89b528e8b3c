"""Prepares the next step's item in one background thread while the current step computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Items by index, the one after the last asked for always under way.

    ``make`` must be a pure function of the index: it also runs for an index that is then never asked for.

    Args:
        make: builds the item of an index; runs in the background thread only.
        first: the index that will be asked for first.
    """

    def __init__(self, make: Callable[[int], T], first: int) -> None:
        self._make = make
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._index = first
        self._next: Future[T] = self._worker.submit(make, first)

    def get(self, index: int) -> T:
        """The item of ``index``. What ``make`` raised for it is raised here; asking again tries again."""
        if index != self._index:
            self._start(index)
        try:
            item = self._next.result()
        except BaseException:
            self._start(index)
            raise
        self._start(index + 1)
        return item

    def _start(self, index: int) -> None:
        self._next.cancel()
        self._index, self._next = index, self._worker.submit(self._make, index)

    def close(self) -> None:
        """Drop what is prepared and end the thread. May be called twice."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
