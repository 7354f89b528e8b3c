"""How a process of ours ends."""

import atexit
import contextlib
import os
import sys
from typing import NoReturn


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
