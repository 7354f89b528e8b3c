"""Files and directories that are whole or not there: written aside, published by one rename.

What must outlast a power failure as well is flushed by its writer (`engine.checkpoint`).
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def partial(path: Path) -> Path:
    """Where a file or directory is while it is on its way."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def new_file(path: Path, by_many: bool = False) -> Iterator[Path]:
    """Yield where to write; a good end of the block makes it ``path``, any other leaves nothing and the old file.

    Args:
        by_many: other processes may write the same file at the same time, so that each writes its own; the last stays.
    """
    aside = partial(path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}") if by_many else path)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)  # a full disk gets its room back


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; a good end of the block puts it in the place of ``path``, any other leaves ``path``."""
    aside = partial(path)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
