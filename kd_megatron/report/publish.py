"""A study's report for a repository: page, tables, figures, LaTeX and the packed study that they are written from.

The same packed study gives the same files on any machine, so that what is committed can be made again from itself.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kd_megatron.analysis.statistics import Method
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.report import packed as raw
from kd_megatron.report.packed import Raw
from kd_megatron.report.page import places
from kd_megatron.report.study import page

HTML = "index.html"
PAGE = "report.md"
OWN = ("figures/*", "tables/*", "cells/*/report/*/*")  # of a report that is written anew


def publish(
    source: Path, target: Path | None = None, interval: Method | None = None, beside: Sequence[Path | str] = ()
) -> Path:
    """Write the report of a study, or of a packed one, for a repository.

    Args:
        source: a study's directory; or a packed study, or the directory that it is in.
        target: where to; None, of a packed study: beside it, with the HTML page.
        interval: how intervals are made; None: as packed, ``"t"`` of a study.
        beside: other studies whose losses the laws are fitted to as well; of a packed study they are in it.

    Returns:
        The path of the Markdown page; of the HTML page, where it is written.

    Raises:
        OutputError: there is no study, or the disk is full.
        DataError: the packed study is damaged.
        RecipeError: too few seeds for this kind of interval.
    """
    packed = raw.find(source)
    study = raw.read(packed) if packed else raw.pack(source, interval or "t", beside)
    study = Raw(study.files, study.beside, interval or study.interval)
    place = target or (packed or source).parent
    aside = place / "report.partial"
    with disk_full_is_clear(place):
        shutil.rmtree(aside, ignore_errors=True)
        directory, others = study.unpack(aside / "studies")
        page.write_files(directory, aside / "page", study.interval, others)
        for cell in sorted(directory.glob("cells/*/")):  # of a grid
            page.write_files(cell, aside / "page" / "cells" / cell.name / "report", study.interval)
        study.write(aside / "page" / raw.RAW_FILE)
        if target is not None:
            for html in (aside / "page").rglob(HTML):
                html.unlink()
        held_one = (place / raw.RAW_FILE).is_file() and (place / PAGE).is_file()
        places.move(aside / "page", place, last=PAGE, own=OWN if held_one else ())
        shutil.rmtree(aside)
    return place / (PAGE if target is not None else HTML)
