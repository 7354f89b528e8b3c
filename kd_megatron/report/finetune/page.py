"""The page of one model's fine-tuning: scores.md and scores.html, tables/*.csv, figures/*.png, beside summary.json.

Nothing is trained. The same numbers give the same files, so that a page can be kept in a repository.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from kd_megatron.console.units import counted
from kd_megatron.files import records
from kd_megatron.files.portable import without_places
from kd_megatron.finetune.places import MACHINES, SUMMARY
from kd_megatron.report.finetune import figures, tables
from kd_megatron.report.finetune import results as finetune_results
from kd_megatron.report.finetune.results import FinetuneResults, OthersScores
from kd_megatron.report.page import places, words
from kd_megatron.report.page.document import Block, Bullets, Details, Heading, Paragraph, TableBlock
from kd_megatron.report.page.page import Page, figure_blocks, table_blocks
from kd_megatron.report.page.table import Table
from kd_megatron.study import layout

PAGE = "scores.md"
HTML = "scores.html"
OWN = ("figures/*", "tables/*")  # of a page that is written anew
CAPTIONS = {
    "scores": "Score of each task. Filled: mean over seeds with its 95 % interval; open circles: single seeds.",
    "learning_curves": "Training loss of every cell, averaged between its points. Blue: the setting that the score is "
    "read from (thick: mean over its seeds); grey: the others.",
    "dev_curves": "The first metric of each task on dev, as training went on; colours as above.",
    "grid": "Score of every setting, mean over its seeds with its 95 % interval where it ran with two or more.",
}


def write_page(output: Path, target: Path | None = None, published: Path | None = None) -> Path:
    """Write the page of a finished fine-tuning.

    Args:
        output: what the stage wrote; or a page that is kept in a repository.
        target: a directory of a repository, which gets the page without its HTML, a copy of the summary in which
            paths are cut to their names, and all cells in one file, so that the page can be written from it again;
            None: ``output``.
        published: a JSON file of scores that others report, to be shown beside these.

    Returns:
        The path of the Markdown page.

    Raises:
        OutputError: the fine-tuning is not finished, its files are damaged, or the disk is full.
        DataError: ``published`` cannot be used.
    """
    results = finetune_results.load(output)
    others = finetune_results.read_published(published) if published else None
    target, is_kept = target or output, target not in (None, output)
    tables = all_tables(results, others)
    blocks, title = content(results, others, tables), f"Fine-tuning of {results.model}"
    page = Page(title, subtitle(results), blocks, tables, markdown=PAGE, html=None if is_kept else HTML)
    with places.renewed(target, last=PAGE, own=OWN if (target / PAGE).is_file() else ()) as aside:
        page.write(aside)
        if is_kept:
            records.write_json(aside / SUMMARY, without_places(layout.read_summary(output)))
            records.write_json(aside / MACHINES, results.machines)
            cells = [cell for part in results.cells.values() for cell in part]  # the page is written from them again
            records.write_text(aside / finetune_results.CELLS, "".join(json.dumps(cell) + "\n" for cell in cells))
    return target / PAGE


def content(results: FinetuneResults, others: OthersScores | None, found: list[Table]) -> list[Block]:
    """The page, top to bottom: scores, averages, what others report, curves, the grid, settings, machines."""
    shown = partial(table_blocks, found)
    blocks: list[Block] = [Paragraph(_lead(results), lead=True), *shown("scores")]
    blocks += figure_blocks(CAPTIONS, [figures.scores], results)
    if averages := shown("averages"):
        blocks += [Heading("Averages"), *averages]
    if others:
        blocks += [Heading("Beside what others report"), *shown("published")]
        blocks += [Bullets(others.remarks)] if others.remarks else []
    blocks += [Heading("The metrics behind the scores"), *shown("metrics")]
    if grid := shown("grid"):
        blocks += [Heading("The grid"), *figure_blocks(CAPTIONS, [figures.grid], results), Details("In numbers", grid)]
    if figures.has_curves(results, "learning_curve"):
        curves = (figures.learning_curves, figures.dev_curves)
        blocks += [Heading("Learning curves"), *figure_blocks(CAPTIONS, curves, results)]
    return [*blocks, Heading("How"), *_method(results)]


def _lead(results: FinetuneResults) -> str:
    partial = [task for task, part in results.tasks.items() if part.partial_split]
    text = f"Average over {counted(len(results.tasks), 'task')}: {words.score(results.average())} points"
    num_seeds = {len(part.scores) for part in results.tasks.values()}
    text += f" ({counted(num_seeds.pop(), 'seed') if len(num_seeds) == 1 else 'seeds differ'})."
    text += f" Not GLUE's rows: {', '.join(partial)}." if partial else ""
    collapsed = [
        f"{task} {part.num_collapsed} of {len(part.scores)}"
        for task, part in results.tasks.items()
        if part.num_collapsed
    ]
    return text + (f" Fine-tunings that collapsed: {', '.join(collapsed)}." if collapsed else "")


def _method(results: FinetuneResults) -> list[Block]:
    facts = [
        f"Model: {results.model}, hash of configuration, weights and tokenizer {results.summary.model_hash}.",
        f"Each score is that of the {results.summary.selection}.",
        f"Precision: {results.summary.precision}. {_cost(results)}",
    ]
    blocks: list[Block] = [Bullets(facts)]
    if table := tables.settings(results):
        blocks.append(Details("All settings", [TableBlock(replace(table, rows=without_places(table.rows)))]))
    machines: list[Block] = [TableBlock(table) for table in tables.machines(results)]
    if machines:
        blocks.append(Details("Commit, versions, hardware", machines))
    return blocks


def _cost(results: FinetuneResults) -> str:
    num_cells = sum(len(cells) for cells in results.cells.values())
    seconds = results.seconds
    spent = f"{seconds:.0f} seconds" if seconds < 600 else f"{seconds / 3600:.2f} hours"
    return f"{counted(num_cells, 'cell')} took {spent} of training and evaluation, summed over processes."


def subtitle(results: FinetuneResults) -> str:
    """What was run, in one line."""
    num_cells = sum(len(part.cells) for part in results.tasks.values())
    return f"{counted(len(results.tasks), 'task')}, {counted(num_cells, 'cell')}, {results.summary.precision}."


def all_tables(results: FinetuneResults, others: OthersScores | None) -> list[Table]:
    """Every table, for csv."""
    found = [tables.scores(results), tables.averages(results), tables.metrics(results), tables.grid(results)]
    found += [tables.cells(results), tables.published(results, others) if others else None]
    return [table for table in found if table is not None]
