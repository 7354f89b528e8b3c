"""Remembers which files were read in full and found to match their checksum, so that it is done once.

A file is known by name, size, modification and change times, inode and checksum. The memory is a small file beside the
shards, written atomically; where the directory is read-only it is simply not kept.
"""

import contextlib
import json
import time
from pathlib import Path

from kd_megatron.errors import DataError
from kd_megatron.files import atomic
from kd_megatron.files.manifest import require_plausible_size

MEMORY = ".verified.json"
_SAVE_SECONDS = 5.0  # between writes while many shards are checked; the last are written at the end
SETTLED_SECONDS = 2.0  # a file changed within the clock's granularity of the check would keep its time stamps

Stamp = list[int | str]


class VerifiedFiles:
    """The verified files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MEMORY
        self._stamps: dict[str, Stamp] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError, DataError):
            require_plausible_size(self._path)
            found = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
            self._stamps = found if isinstance(found, dict) else {}
        self._changed, self._saved_at = False, time.monotonic()

    def knows(self, path: Path, sha256: str) -> bool:
        """Whether this very file was found to have this checksum."""
        return self._stamps.get(path.name) == _stamp(path, sha256)

    def add(self, path: Path, sha256: str) -> None:
        """Note that the file was found to have this checksum, unless it was written a moment ago."""
        status = path.stat()
        if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
            self._stamps[path.name] = _stamp(path, sha256)
            self._changed = True

    def save(self, at_once: bool = True) -> None:
        """Write what was added, all or nothing and as well as the directory allows.

        Processes that open the set together each rename a file of their own into place: the last one stays, whole. It
        may lack what another one added, which is then found good once more.
        """
        if not self._changed or (not at_once and time.monotonic() - self._saved_at < _SAVE_SECONDS):
            return
        with contextlib.suppress(OSError), atomic.new_file(self._path, by_many=True) as aside:
            aside.write_text(json.dumps(self._stamps), encoding="utf-8")
        self._changed, self._saved_at = False, time.monotonic()


def _stamp(path: Path, sha256: str) -> Stamp:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256]
