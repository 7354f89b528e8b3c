"""Writes a study's report: index.html (one self-contained file), report.md, results.json, tables/ and figures/.

Works on an unfinished study and says what is missing. The report appears at once or not at all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kd_megatron.analysis import break_even, comparisons, laws, results
from kd_megatron.analysis.measure import measure_of
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import run_findings
from kd_megatron.analysis.statistics import Estimate, Method
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic, locks, records
from kd_megatron.recipe import recipe_yaml
from kd_megatron.report.grid import page
from kd_megatron.report.page import latex
from kd_megatron.report.page.document import to_html, to_markdown
from kd_megatron.report.study import curve_figures, figures
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.content import Analysis, all_tables, content, subtitle
from kd_megatron.study import fairness, layout


def write_report(directory: Path | str, interval: Method = "t", beside: Sequence[Path | str] = ()) -> Path:
    """Write ``directory/report`` anew from what the study's pieces left behind.

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
        write_files(directory, aside, interval, beside)
    return final / "index.html"


def write_files(directory: Path | str, target: Path, interval: Method = "t", beside: Sequence[Path | str] = ()) -> None:
    """Write the report's files to ``target``, a new directory. Arguments and errors as of `write_report`."""
    if layout.is_grid(Path(directory)):
        page.write_files(Path(directory), target, interval)
    else:
        _write_study_files(results.load(directory, interval), target, beside)


def _write_study_files(study: StudyResults, target: Path, beside: Sequence[Path | str]) -> None:
    comparisons.check_interval(study)
    found = Analysis(
        run_findings(study),
        fairness.allowed(study.recipe, study.resolved),
        laws.laws([study, *laws.load_beside(study, beside)]),
        break_even.all_break_evens(study),
    )
    for part in ("figures", "tables"):
        (target / part).mkdir(parents=True)
    drawn = figures.write_figures(study, target / "figures", _more_figures(study, found))
    blocks = content(study, found, drawn)
    for table in all_tables(study, found):
        table.write_csv(target / "tables")
        latex.write(table, target / "tables")
    records.write_json(target / "results.json", as_data(study, found))
    title = f"Study {study.recipe.name}"
    (target / "report.md").write_text(to_markdown(title, subtitle(study), blocks, target), encoding="utf-8")
    (target / "index.html").write_text(to_html(title, subtitle(study), blocks), encoding="utf-8")


def _more_figures(study: StudyResults, found: Analysis) -> dict[str, Callable[[], Figure | None]]:
    return {
        "score_against_budget": lambda: curve_figures.score_against_budget(study),
        "loss_against_budget": lambda: curve_figures.loss_against_budget(study),
        "cola_against_tokens": lambda: curve_figures.cola_against_tokens(study),
        "scaling": lambda: curve_figures.scaling(study, found.laws),
        "break_even": lambda: curve_figures.break_even(study, found.break_evens),
    }


def as_data(study: StudyResults, analysis: Analysis) -> dict[str, Any]:
    """``results.json``: everything the report says, as numbers in base units (scores in [0, 1], seconds, FLOPs)."""
    measure = measure_of(study)
    found = all_tables(study, analysis)
    return {
        "study": study.recipe.name,
        "answer": answer(study),
        "ranked_by": measure.quantity,
        "reference": study.reference,
        "missing": study.missing,
        "tables": {table.name: [_plain(row) for row in table.rows] for table in found},
        "caveats": caveats(study, analysis.findings, analysis.allowed),
        "scaling_warnings": analysis.laws.warnings,
        "fingerprint": study.all_runs()[0].summary.fingerprint if study.arms else None,
        "recipe": recipe_yaml.read((study.directory / layout.RECIPE_FILE).read_text(encoding="utf-8")),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Estimates as mappings, and no NaN, which is not JSON."""
    plain = {key: asdict(value) if isinstance(value, Estimate) else value for key, value in row.items()}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
