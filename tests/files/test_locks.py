"""One writer at a time, on file systems that lock directories and on those that lock files alone."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from kd_megatron.files import locks

FLOCK = fcntl.flock


def no_directories(descriptor: int, how: int) -> None:
    """`flock` as the Linux client of NFS has it."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(descriptor, how)


def nothing(descriptor: int, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("flock", [FLOCK, no_directories])
def test_the_second_is_refused_and_the_next_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: object
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.exclusive(tmp_path, wait=False), pytest.raises(BlockingIOError), locks.exclusive(tmp_path, wait=False):
        pass
    with locks.exclusive(tmp_path, wait=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ([] if flock is FLOCK else [".lock"])


def test_where_there_are_no_locks_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", nothing)
    with locks.exclusive(tmp_path, wait=False), locks.exclusive(tmp_path, wait=False):
        pass
