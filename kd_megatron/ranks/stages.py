"""What this process is doing, for the watchdog and for the other ranks: its step, its stage, when it last got on.

The work itself only marks that it got on (`beat`, well under a microsecond); all looking is done by other threads.
"""

import contextlib
import linecache
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, starmap
from operator import attrgetter, itemgetter
from pathlib import Path
from types import CodeType
from typing import Self

QUIET_SECONDS = 0.5  # without a mark, before anybody looks where the work is
_PLACE = attrgetter("f_code", "f_lineno")  # of a frame
_COLLECTIVE_FILES = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_WAITING_FILES = re.compile(r"/torch/|/deepspeed/|/kd_megatron/")
_WAITS_FOR_RANKS = re.compile(r"\.wait\(\)")
_WAITS_FOR_DEVICE = re.compile(r"\.(item|tolist|cpu|synchronize)\(")


@dataclass
class LatestProgress:
    """The latest marks. ``watched`` stages are those in which no mark for long means a hang."""

    step: int = 0
    stage: str = "set-up"
    watched: bool = False
    at: float = field(default_factory=time.monotonic)
    directory: Path | None = None  # gets stack dumps
    waits: bool = False  # for other ranks, by its own word

    def idle_seconds(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.at


_marks = LatestProgress()


def current() -> LatestProgress:
    """The marks of this process."""
    return _marks


def beat(step: int | None = None) -> None:
    """Mark progress, and the step that was reached when there is one."""
    _marks.at = time.monotonic()
    if step is not None:
        _marks.step = step


def stacks_to(directory: Path) -> None:
    """Name the directory that gets ``stacks_rank_K.txt`` when this process hangs."""
    _marks.directory = directory


@contextlib.contextmanager
def stage(name: str, watched: bool = True) -> Iterator[None]:
    """Name what the ``with`` block does. In a watched one, no mark for ``KD_HANG_SECONDS`` is a hang."""
    outer = _marks.stage, _marks.watched
    _marks.stage, _marks.watched = name, watched
    beat()
    try:
        yield
    finally:
        _marks.stage, _marks.watched = outer
        beat()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What the ``with`` block does is wait for other ranks, outside of a collective: no sign of getting on, no hang."""
    _marks.waits = True
    try:
        yield
    finally:
        _marks.waits = False


@dataclass(frozen=True)
class CodePosition:
    """Where the main thread is."""

    where: str  # "one_step (loop.py:61)"
    waits: bool  # for other ranks, as far as its stack tells


@dataclass(frozen=True)
class _Call:
    """The innermost call of a thread."""

    file: str
    line: int
    function: str

    @classmethod
    def at(cls, place: tuple[CodeType, int | None]) -> Self:
        """Where a `_PLACE` is."""
        code, line = place
        return cls(code.co_filename, line or 0, code.co_name)

    def waits(self) -> bool:
        """Whether it is a wait for other ranks."""
        if _COLLECTIVE_FILES.search(self.file):
            return True
        if not _WAITING_FILES.search(self.file):
            return False
        line = linecache.getline(self.file, self.line)
        return bool(_WAITS_FOR_RANKS.search(line) or (_has_gpu() and _WAITS_FOR_DEVICE.search(line)))


def place() -> CodePosition:
    """Where this process's main thread is, and whether it waits for other ranks: in a collective, or by its own word.

    Nobody looks while marks come in quick succession: what gets on does not hang.
    """
    if _marks.idle_seconds() < QUIET_SECONDS:
        return CodePosition("its work", waits=False)
    main, calls = _innermost_calls()
    if main is None:
        return CodePosition("ended", waits=False)
    # Backward of a GPU runs its hooks, and their collectives, in threads of autograd.
    in_autograd = "/torch/autograd/" in main.file
    waits = _marks.waits or main.waits() or (in_autograd and any(call.waits() for call in calls))
    return CodePosition(f"{main.function} ({Path(main.file).name}:{main.line})", waits)


def _innermost_calls() -> tuple[_Call | None, list[_Call]]:
    """The main thread's, None when it has ended, and those of all threads. Each look is one call into C.

    Neither of the plainer ways will do. A frame that somebody holds at its end keeps its variables, tensors among them:
    held across a switch of threads, those of `sys._current_frames` doubled the peak of a backward pass. And
    `faulthandler.dump_traceback` walks the threads without the lock of their list: a native thread, as of gloo, that
    enters Python meanwhile made it end the process by SIGSEGV, without a word.
    """
    main = itemgetter(threading.main_thread().ident or 0)
    try:
        of_main = list(map(_PLACE, map(main, starmap(sys._current_frames, [()]))))
    except KeyError:
        of_main = []
    of_all = list(map(_PLACE, chain.from_iterable(map(dict.values, starmap(sys._current_frames, [()])))))
    return next(map(_Call.at, of_main), None), [*map(_Call.at, of_all)]


def _has_gpu() -> bool:
    """A host that waits for its GPU may be waiting for a collective there."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()
