"""Writes a study's report: index.html (one self-contained file), report.md, results.json, tables/ and figures/.

Works on an unfinished study and says what is missing. The report appears at once or not at all.
"""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.analysis import break_even, comparisons, laws, results
from kd_megatron.analysis.measure import measure_of
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import run_findings
from kd_megatron.analysis.statistics import Method
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic, locks
from kd_megatron.recipe import recipe_yaml
from kd_megatron.report.grid.page import grid_page
from kd_megatron.report.page.page import HTML, Page
from kd_megatron.report.study import protocol
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.content import Analysis, all_tables, content, subtitle
from kd_megatron.study import fairness, journal, layout


def write_report(directory: Path | str, interval: Method = "t", beside: Sequence[Path | str] = ()) -> Path:
    """Write ``directory/report`` anew from what the study's pieces left behind, and note in its journal that it was.

    Args:
        directory: of a study, finished or not.
        interval: how intervals are made.
        beside: other studies, of other budgets, whose losses the scaling laws are fitted to as well.

    Returns:
        The path of ``index.html``.

    Raises:
        OutputError: ``directory`` is no study, or a summary in it is damaged.
        RecipeError: too few seeds for this kind of interval.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise layout.no_study(directory)
    final = directory / "report"
    alone = locks.exclusive(directory, wait=True)  # a study writes its own at its end, while somebody watches it
    with alone, disk_full_is_clear(final), atomic.new_directory(final) as aside:
        journal.note_look(directory)
        write_files(directory, aside, interval, beside)
    return final / HTML


def write_files(directory: Path | str, target: Path, interval: Method = "t", beside: Sequence[Path | str] = ()) -> None:
    """Write the report's files to ``target``, a new directory. Arguments and errors as of `write_report`."""
    is_grid = layout.is_grid(Path(directory))
    page = grid_page(Path(directory), interval) if is_grid else study_page(results.load(directory, interval), beside)
    page.write(target)


def study_page(study: StudyResults, beside: Sequence[Path | str] = ()) -> Page:
    """The page of one study, and ``results.json``: all it says, in base units (scores in [0, 1], seconds, FLOPs)."""
    comparisons.check_interval(study)
    found = Analysis(
        run_findings(study),
        fairness.allowed(study.recipe, study.resolved),
        laws.laws([study, *laws.load_beside(study, beside)]),
        break_even.all_break_evens(study),
    )
    tables = all_tables(study, found)
    data = {
        "study": study.recipe.name,
        "answer": answer(study),
        "ranked_by": measure_of(study).quantity,
        "reference": study.reference,
        "missing": study.missing,
        "tables": {table.name: table.plain_rows() for table in tables},
        "caveats": caveats(study, found.findings, found.allowed),
        "scaling_warnings": found.laws.warnings,
        "preregistration": protocol.plain(study),
        "fingerprint": study.all_runs()[0].summary.fingerprint if study.arms else None,
        "recipe": recipe_yaml.read((study.directory / layout.RECIPE_FILE).read_text(encoding="utf-8")),
    }
    blocks = content(study, found, tables)
    return Page(f"Study {study.recipe.name}", subtitle(study), blocks, tables, data)
