"""A study's report for a repository: page, tables, figures, LaTeX and the packed study that they are written from.

The same packed study gives the same files on any machine, so that what is committed can be made again from itself.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.analysis.statistics import Method
from kd_megatron.report import packed as raw
from kd_megatron.report.packed import Raw
from kd_megatron.report.page import places
from kd_megatron.report.page.page import HTML, MARKDOWN
from kd_megatron.report.study import page
from kd_megatron.study import journal

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
    if packed is None:  # a packed study is a copy, whose journal ends where it was packed
        journal.note_look(source)
    study = raw.read(packed) if packed else raw.pack(source, interval or "t", beside)
    study = Raw(study.files, study.beside, interval or study.interval)
    place = target or (packed or source).parent
    held_one = (place / raw.RAW_FILE).is_file() and (place / MARKDOWN).is_file()
    with places.renewed(place, last=MARKDOWN, own=OWN if held_one else ()) as aside:
        directory, others = study.unpack(aside.parent / "studies")
        page.write_files(directory, aside, study.interval, others)
        for cell in sorted(directory.glob("cells/*/")):  # of a grid
            page.write_files(cell, aside / "cells" / cell.name / "report", study.interval)
        study.write(aside / raw.RAW_FILE)
        for html in aside.rglob(HTML) if target is not None else ():
            html.unlink()
    return place / (MARKDOWN if target is not None else HTML)
