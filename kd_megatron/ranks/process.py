"""How a process of ours begins and ends, and which rank it is: told without torch, which not all who ask need."""

import atexit
import contextlib
import ctypes
import os
import sys
from typing import NoReturn

from kd_megatron.redact import redact


def rank() -> int:
    """This process's rank, 0 when alone."""
    group = sys.modules.get("torch.distributed")  # whoever joined a group has imported it
    return int(group.get_rank()) if group and group.is_initialized() else int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files and talks."""
    return rank() == 0


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_KEPT_BYTES = 2**30  # blocks of up to this size, and as much free memory at the heap's end


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, for the next step, instead of giving them back each time.

    A step on a CPU frees and takes the same blocks over and over; given back, every page of them faults again. Where
    the C library is not glibc, nothing changes. A user's own MALLOC_* variables are respected.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def say_error(message: str) -> None:
    """Print ``message`` as this rank's error on stderr, without secrets."""
    rank = int(os.environ.get("RANK", 0))
    prefix = f"[rank {rank}] " if rank else ""
    print(redact(f"{prefix}error: {message}"), file=sys.stderr, flush=True)


def exit_process(code: int) -> NoReturn:
    """End this process with ``code``: exit handlers run and output is flushed, but the interpreter is not torn down.

    A native thread of gloo may still hold the tensors of the last collective. If it asks for the interpreter's lock
    while Python finalises, it aborts the process ("terminate called without an active exception"), and a rank that
    did all its work seems to have crashed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # reported where it matters, before this
            stream.flush()
    os._exit(code)
