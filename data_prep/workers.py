"""Worker processes: bounded, ordered, never orphaned.

`multiprocessing.Pool.imap` reads its whole input ahead (a corpus would end in memory) and the workers of a killed
parent live on; this small pool does neither. One worker means none: the work is done in this process.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_connection
from types import TracebackType
from typing import Any, Self, TypeVar

from kd_megatron.errors import EnvironmentFault

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_SECONDS = 0.2
_report: Callable[[int, int], None] = lambda documents, tokens: None  # noqa: E731


class WorkersStopped(Exception):
    """Ends the work of a worker whose parent has given up."""


def report(num_documents: int, num_tokens: int) -> None:
    """Called by the work itself: so much more is done. The parent's ``on_progress`` sees the sums.

    Raises:
        Stopped: in a worker, when the parent has given up.
    """
    _report(num_documents, num_tokens)


class WorkerPool:
    """``num_workers`` fresh processes (spawn: no state of the parent leaks in), or this one when there is one."""

    def __init__(self, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._num_workers = num_workers
        self._counters = context.Array("q", 3)  # documents, tokens, whether to stop
        self._executor: ProcessPoolExecutor | None = None
        if num_workers > 1:
            self._executor = ProcessPoolExecutor(num_workers, context, _start_worker, (self._counters,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor:
            self._counters[2] = kind is not None  # an error or Ctrl-C: do not finish the shards at hand
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        on_progress: Callable[[int, int], None] = lambda documents, tokens: None,
    ) -> Iterator[Result]:
        """``function(item)`` for each item, in order; at most two items per worker are in memory.

        Args:
            function: a module-level function; what it raises is raised here.
            items: read only as fast as the work proceeds.
            on_progress: called a few times a second with the documents and tokens that `report` summed up.

        Raises:
            EnvironmentFault: a worker died.
        """
        self._counters[:2] = [0, 0]
        if self._executor is None:
            yield from self._map_here(function, items, on_progress)
            return
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self._executor.submit(function, item))
            if len(pending) >= 2 * self._num_workers:
                yield self._result(pending.popleft(), on_progress)
        while pending:
            yield self._result(pending.popleft(), on_progress)

    def _result(self, future: "Future[Result]", on_progress: Callable[[int, int], None]) -> Result:
        while not wait([future], timeout=_POLL_SECONDS).done:
            on_progress(*self._counters[:2])
        on_progress(*self._counters[:2])
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                given="a worker process died, most likely for want of memory",
                expected=f"room for {self._num_workers} workers",
                fix="run the same command with fewer (--workers N); finished shards are kept",
            ) from error

    def _map_here(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        on_progress: Callable[[int, int], None],
    ) -> Iterator[Result]:
        global _report
        _report = _adder(self._counters, then=on_progress)
        for item in items:
            yield function(item)


def _start_worker(counters: Any) -> None:
    global _report
    _report = _adder(counters)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _adder(counters: Any, then: Callable[[int, int], None] | None = None) -> Callable[[int, int], None]:
    def add(num_documents: int, num_tokens: int) -> None:
        if counters[2]:
            raise WorkersStopped
        with counters.get_lock():
            counters[0] += num_documents
            counters[1] += num_tokens
        if then:
            then(*counters[:2])

    return add


def _die_with_parent() -> None:
    """After ``kill -9`` of the parent the executor's workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_connection([parent.sentinel])
        os._exit(1)
