"""Puts a finished page where it belongs: file by file by one rename, the page itself last."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from kd_megatron.errors import disk_full_is_clear

ENDINGS = (".png", ".csv", ".tex", ".md", ".json")  # of what reports write


@contextlib.contextmanager
def renewed(place: Path, last: str, own: Iterable[str] = ()) -> Iterator[Path]:
    """A new directory below ``place`` for a page, whose files are moved to ``place`` at the end of the block.

    Arguments as of `move`. What the block puts beside that directory goes with it; a block that fails moves nothing.
    """
    aside = place / "page.partial"
    with disk_full_is_clear(place):
        shutil.rmtree(aside, ignore_errors=True)
        yield aside / "page"
        move(aside / "page", place, last, own)
        shutil.rmtree(aside)


def move(page: Path, place: Path, last: str, own: Iterable[str] = ()) -> None:
    """Move every file below ``page`` to the same path below ``place``, the one called ``last`` as the last.

    Args:
        page: a directory of finished files.
        place: where they go.
        last: the file that is read first.
        own: patterns below ``place`` of the files of the page that was there before. Of those, what this one no longer
            has is removed. Give none where it is not certain that the place held a page: they may be somebody's files.
    """
    files = sorted((path for path in page.rglob("*") if path.is_file()), key=lambda path: path.name == last)
    moved = {place / path.relative_to(page) for path in files}
    for path in files:
        final = place / path.relative_to(page)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, final)
    for old in (old for pattern in own for old in place.glob(pattern) if old not in moved):
        if old.is_file() and old.suffix in ENDINGS:
            old.unlink()
