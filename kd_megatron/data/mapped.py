"""A file of token ids, mapped into memory, that is still the file it was when it was checked, or an error.

A map shows whatever the file becomes: bytes written later are read without a word, and reading past a new, shorter end
kills the process (SIGBUS). So the file's identity is compared before and after every read (docs/data_format.md).
"""

import ctypes
import math
import mmap
import os
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kd_megatron.errors import DataError
from kd_megatron.files.manifest import file_sha256

REPAIR = "restore the file from a good copy, or delete the shard set and prepare it again"
# Time stamps come from a clock that ticks every few milliseconds: a write within the tick of an earlier one would leave
# the same stamp. A file younger than this is opened that much later.
TICK_SECONDS = 0.05
JUST_NOW_SECONDS = 0.002  # after so short a time no new look is taken before a read; after a read one always is

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value

Stamp = tuple[int, int, int, int]


class MappedFile:
    """One ``.bin`` file, mapped. Holds no file descriptor: thousands of shards stay below ``ulimit -n``.

    Args:
        sha256: what its content must hash to. Not looked at here: the caller checks it, and `require_unchanged` does
            when the file was touched later.
    """

    def __init__(self, path: Path, dtype: str, sha256: str) -> None:
        self._path, self._sha256 = os.path.abspath(path), sha256
        status = path.stat()
        if 0 <= time.time() - max(status.st_mtime, status.st_ctime) < TICK_SECONDS:
            time.sleep(TICK_SECONDS)
        with path.open("rb") as file:
            self._stamp = _stamp(os.fstat(file.fileno()))
            size = self._stamp[0]
            self.tokens = _map(file.fileno(), size, dtype)
        self._looked_at = time.monotonic()

    def read(self, starts: NDArray[Any], length: int) -> NDArray[Any]:
        """[num_windows, length] the ids at ``starts`` and after, a copy.

        Raises:
            DataError: the file is not what was opened any more; names it.
        """
        view = sliding_window_view(self.tokens, length)
        while True:
            if time.monotonic() - self._looked_at > JUST_NOW_SECONDS:
                self.require_unchanged()  # before: reading past a new end would kill the process
            before = self._stamp
            windows: NDArray[Any] = view[starts]
            self.require_unchanged()
            if self._stamp == before:  # else it was touched meanwhile: read again
                return windows

    def require_unchanged(self) -> None:
        """Look whether the file is still what was opened.

        Where the time stamps alone moved (``touch``, ``chmod``, a hard link), its content decides.

        Raises:
            DataError: it vanished, was replaced or truncated, or its content is another.
        """
        looked_at, self._looked_at = time.monotonic(), -math.inf  # after a failure the next read looks first
        stamp = self._look()
        if stamp == self._stamp:
            self._looked_at = looked_at
            return
        if (stamp[0], stamp[3]) != (self._stamp[0], self._stamp[3]):
            what = "replaced" if stamp[3] != self._stamp[3] else "truncated or appended to"
            raise self._changed(f"was {what}")
        if _content_sha256(self._path) != self._sha256 or self._look() != stamp:
            raise self._changed("was altered")
        self._stamp = stamp

    def _look(self) -> Stamp:
        try:
            return _stamp(os.stat(self._path))
        except OSError as error:
            raise self._changed(f"cannot be read any more ({error.strerror})") from error

    def _changed(self, how: str) -> DataError:
        return DataError(
            given=f"{self._path} {how} while a run reads it",
            expected="the file that was there when the run began; nothing of the new one was used",
            fix=f"{REPAIR}; then the same command resumes",
        )


def _stamp(status: os.stat_result) -> Stamp:
    """Size, modification and change time, inode."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _content_sha256(path: str) -> str:
    """Read, not through a map: a file cut short meanwhile ends early instead of killing the process."""
    try:
        return file_sha256(Path(path))
    except OSError:
        return ""


def _map(descriptor: int, num_bytes: int, dtype: str) -> NDArray[Any]:
    """[tokens] the file's ids, read-only; unmapped when the last array over them is gone.

    Not ``np.memmap``: Python's own maps each keep a file descriptor open.
    """
    if num_bytes < np.dtype(dtype).itemsize:
        return np.zeros(0, dtype)
    address = _libc.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    buffer: Any = (ctypes.c_char * num_bytes).from_address(address)
    # Not at the interpreter's exit: a background thread may still be reading then.
    weakref.finalize(buffer, _libc.munmap, address, num_bytes).atexit = False
    tokens = np.frombuffer(buffer, dtype, count=num_bytes // np.dtype(dtype).itemsize)
    tokens.flags.writeable = False
    return tokens
