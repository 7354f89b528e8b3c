"""One writer of a directory at a time. The system releases a lock when its process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kd_megatron.errors import OutputError


@contextlib.contextmanager
def exclusive(directory: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of ``directory``, which exists. On a file system without locks the work goes on without one.

    NFS locks files that are open for writing, and no directories: there a file in it, ``.lock``, stands for it.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    with contextlib.ExitStack() as opened:
        descriptor = os.open(directory, os.O_RDONLY)
        opened.callback(os.close, descriptor)
        if not _flock(descriptor, wait):
            with contextlib.suppress(PermissionError):
                _flock(opened.enter_context((directory / ".lock").open("a")).fileno(), wait)
        yield


def _flock(descriptor: int, wait: bool) -> bool:
    """Take the lock; False where the file system has none for it. Raises `BlockingIOError` as `exclusive` does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextlib.contextmanager
def alone(directory: Path, doing: str) -> Iterator[None]:
    """Hold ``directory``, which exists, for this job: two commands would do the same work over each other. Collective.

    Args:
        directory: what the job writes to. Rank 0 holds it for all.
        doing: what others are told, such as "training in".

    Raises:
        OutputError: another process holds it.
    """
    from kd_megatron.ranks import dist  # here: a report holds its directory too, and has no use for torch

    with contextlib.ExitStack() as held:
        if not dist.on_main(lambda: _holds(directory, held)):
            raise OutputError(
                given=f"another process is {doing} {directory}",
                expected="one command at a time",
                fix="wait for it, or choose another --output",
            )
        yield


def _holds(directory: Path, held: contextlib.ExitStack) -> bool:
    try:
        held.enter_context(exclusive(directory, wait=False))
    except BlockingIOError:
        return False
    return True
