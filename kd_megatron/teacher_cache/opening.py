"""Opens a store for a run: one run at a time, of the right identity, and with room for all its rows.

The identity says whose outputs a store holds: one of another teacher, text, mask or precision is never read.
"""

import fcntl
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from kd_megatron.console.logs import say, warn
from kd_megatron.errors import OutputError, disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.ranks import dist
from kd_megatron.recipe.paths import refuse_file_or_links_out
from kd_megatron.teacher_cache.contents import Contents
from kd_megatron.teacher_cache.store import INDEX, Store

IDENTITY = "identity.json"
FORMAT = 1
GIB = 2**30
LOCK = "lock"

Identity = dict[str, Any]


def identity_of(contents: Contents, teacher: dict[str, str | None], windows: dict[str, Any]) -> Identity:
    """Everything that decides a row's bytes.

    Args:
        teacher: of the teacher, its weights' hash and its precision.
        windows: of the loader, what decides the window of a row and its mask.
    """
    parts = {part.name: f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}" for part in contents.parts}
    described: Identity = {"format": FORMAT, **teacher, **windows, "inputs": contents.inputs}
    described |= {"vocabulary": contents.teacher.vocab_size, "row": parts, "row_bytes": contents.row_bytes}
    if contents.needs.logits:
        described |= {"top_k": contents.top_k, "temperature": contents.temperature}
    return described


def claim_cache(directory: Path, identity: Identity) -> None:
    """Make ``directory`` the store of ``identity``, or check that it is.

    Raises:
        OutputError: it holds something else; each difference is named.
    """
    refuse_file_or_links_out(directory)
    path = directory / IDENTITY
    if not path.exists():
        own = ("lock", atomic.partial(path).name)
        strangers = sorted(p.name for p in directory.iterdir() if p.name not in own)
        if strangers:
            raise OutputError(
                given=f"{directory} holds files, but no {IDENTITY}: {', '.join(strangers[:3])}",
                expected="a teacher cache, or an empty directory",
                fix="give another teacher.cache.path, or remove the directory",
            )
        _write(path, identity)
    found = read_identity(directory)
    differing = [
        f"{key}: {found.get(key)!r} in the cache, {identity.get(key)!r} in the recipe"
        for key in dict.fromkeys((*identity, *found))
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise OutputError(
            given=f"the teacher cache {directory} was filled for something else; " + "; ".join(differing),
            expected="the same teacher, text, masks and precision",
            fix="restore the recipe, give another teacher.cache.path, or remove the directory to fill it anew",
        )


def read_identity(directory: Path) -> Identity:
    """The identity of the store in ``directory``. Raises `OutputError` when it cannot be read."""
    path = directory / IDENTITY
    try:
        identity: Identity = json.loads(path.read_text(encoding="utf-8"))
        return identity
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(
            given=f"{path} cannot be read: {error}",
            expected="what an earlier run wrote there",
            fix="remove the directory: the cache is filled anew",
        ) from error


def _write(path: Path, identity: Identity) -> None:
    """All or nothing, also when the power fails."""
    with disk_full_is_clear(path), atomic.new_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(identity, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


class OpenStore(Store):
    """A store that this run has for itself. Collective: all ranks open and close it together."""

    def __init__(self, path: Path, contents: Contents, identity: Identity, num_rows: int, max_gib: float) -> None:
        """Open ``path``/NAME, NAME being the contents' own; rank 0 makes what is not there.

        Raises:
            OutputError: another run uses the store, it holds something else, or its rows would not fit.
        """
        directory = path / contents.name
        self._lock: IO[bytes] | None = None

        def prepare() -> None:
            self._lock = _prepare(directory, identity, contents.row_bytes, num_rows, max_gib)

        dist.on_main(prepare)
        super().__init__(directory, contents.row_bytes, num_rows)
        self._check_all()

    def _check_all(self) -> None:
        """Compare every row with its checksum, each rank a share: from then on rows are read without. Collective."""
        start, num_rows = time.perf_counter(), self.num_present()
        damaged = sum(len(rows) for rows in dist.gather(self.drop_damaged(dist.rank(), dist.world_size())))
        self.trust_present()
        if damaged:
            warn(f"the teacher cache {self.directory} has {damaged} damaged rows, which the teacher makes again")
        if num_rows:
            seconds = time.perf_counter() - start
            gib = num_rows * self.row_bytes / GIB
            say(f"teacher cache: {num_rows:,} windows ({gib:.3g} GiB) were checked in {seconds:.1f} s")

    def close(self) -> None:
        """Close the files, and let other runs in."""
        super().close()
        if self._lock is not None:
            self.write_fill_cost()
            self._lock.close()
            self._lock = None


def _prepare(directory: Path, identity: Identity, row_bytes: int, num_rows: int, max_gib: float) -> IO[bytes]:
    """On rank 0: lock, check and grow the directory; returns the lock."""
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(directory)
        try:
            claim_cache(directory, identity)
            _check_room(directory, row_bytes, num_rows, max_gib)
            index = os.open(directory / INDEX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(index, max(4 * num_rows, os.fstat(index).st_size))
            os.close(index)
        except BaseException:
            lock.close()
            raise
    return lock


def _take_lock(directory: Path) -> IO[bytes]:
    """The system releases it when the process ends, however it ends."""
    lock = (directory / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        busy = isinstance(error, BlockingIOError)
        raise OutputError(
            given=f"the teacher cache {directory} " + ("is in use by another run" if busy else f"has no lock: {error}"),
            expected="one run at a time" if busy else "a file system with locks (flock)",
            fix="wait for that run, or give this one another teacher.cache.path",
        ) from error
    return lock


def _check_room(directory: Path, row_bytes: int, num_rows: int, max_gib: float) -> None:
    """All rows must fit before the first is written."""
    total = num_rows * (row_bytes + 4)
    given = f"the teacher cache {directory} needs {_size(total)}: {num_rows:,} windows of {row_bytes:,} bytes"
    smaller = "lower data.unique_tokens, or remove teacher.cache"
    if total > max_gib * GIB:
        raise OutputError(
            given=given,
            expected=f"at most teacher.cache.max_gib, {max_gib:g} GiB",
            fix=f"set teacher.cache.max_gib to {math.ceil(10 * total / GIB) / 10:g} or more, {smaller}",
        )
    existing = Store(directory, row_bytes, num_rows)
    missing = (num_rows - existing.num_present()) * (row_bytes + 4)
    existing.close()
    free = shutil.disk_usage(directory).free
    if missing > free:
        raise OutputError(
            given=f"{given}, of which {_size(missing)} are not there yet",
            expected=f"room on its disk, which has {_size(free)} left",
            fix=f"free some space, give a teacher.cache.path on another disk, {smaller}",
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.3g} GiB"
