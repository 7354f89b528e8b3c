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
from pathlib import Path
from types import FrameType

_COLLECTIVE_FILES = re.compile(r"/torch/distributed/|/deepspeed/comm/")
_WAITING_FILES = re.compile(r"/torch/|/deepspeed/|/kd_megatron/")
_WAITS_FOR_RANKS = re.compile(r"\.wait\(\)")
_WAITS_FOR_DEVICE = re.compile(r"\.(item|tolist|cpu|synchronize)\(")


@dataclass
class Marks:
    """The latest marks. ``watched`` stages are those in which no mark for long means a hang."""

    step: int = 0
    stage: str = "set-up"
    watched: bool = False
    at: float = field(default_factory=time.monotonic)
    directory: Path | None = None  # gets stack dumps

    def idle_seconds(self) -> float:
        """Seconds since the last mark."""
        return time.monotonic() - self.at


_marks = Marks()


def current() -> Marks:
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


@dataclass(frozen=True)
class Place:
    """Where the main thread is."""

    where: str  # "one_step (loop.py:61)"
    waits: bool  # for other ranks, as far as its stack tells


def place() -> Place:
    """Where this process's main thread is, and whether it waits for other ranks, in a collective."""
    frames = sys._current_frames()
    main = frames.pop(threading.main_thread().ident or 0, None)
    ours = threading.get_ident()
    others = [frame for thread, frame in frames.items() if thread != ours]
    if main is None:
        return Place("ended", waits=False)
    code = main.f_code
    where = f"{code.co_name} ({Path(code.co_filename).name}:{main.f_lineno})"
    # Backward of a GPU runs its hooks, and their collectives, in threads of autograd.
    in_autograd = "/torch/autograd/" in code.co_filename
    return Place(where, _waits(main) or (in_autograd and any(_waits(frame) for frame in others)))


def _waits(frame: FrameType) -> bool:
    """Whether the innermost ``frame`` of a thread is a wait for other ranks."""
    file = frame.f_code.co_filename
    if _COLLECTIVE_FILES.search(file):
        return True
    if not _WAITING_FILES.search(file):
        return False
    line = linecache.getline(file, frame.f_lineno or 0)  # a frame that runs may be between two lines: None
    return bool(_WAITS_FOR_RANKS.search(line) or (_has_gpu() and _WAITS_FOR_DEVICE.search(line)))


def _has_gpu() -> bool:
    """A host that waits for its GPU may be waiting for a collective there."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()
