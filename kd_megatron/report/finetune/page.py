"""The page of one model's fine-tuning: scores.md and scores.html, tables/*.csv, figures/*.png, beside summary.json.

Nothing is trained. The same numbers give the same files, so that a page can be kept in a repository.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import records
from kd_megatron.finetune.places import MACHINES, SUMMARY
from kd_megatron.report.finetune import figures, tables
from kd_megatron.report.finetune import results as finetune_results
from kd_megatron.report.finetune.results import FinetuneResults, Published
from kd_megatron.report.page import places, words
from kd_megatron.report.page.document import (
    Block,
    Bullets,
    Details,
    FigureBlock,
    Heading,
    Paragraph,
    TableBlock,
    to_html,
    to_markdown,
)
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
    target = target or output
    aside = target / "page.partial"
    with disk_full_is_clear(target):
        shutil.rmtree(aside, ignore_errors=True)
        for part in ("figures", "tables"):
            (aside / part).mkdir(parents=True)
        drawn = figures.write_figures(results, aside / "figures")
        for table in _csv_tables(results, others):
            table.write_csv(aside / "tables")
        blocks, title = content(results, others, drawn), f"Fine-tuning of {results.model}"
        (aside / PAGE).write_text(to_markdown(title, subtitle(results), blocks, aside), encoding="utf-8")
        if target == output:
            (aside / HTML).write_text(to_html(title, subtitle(results), blocks), encoding="utf-8")
        else:
            records.write_json(aside / SUMMARY, _without_places(layout.read_summary(output)))
            records.write_json(aside / MACHINES, results.machines)
            _keep_cells(aside / finetune_results.CELLS, results)
        places.move(aside, target, last=PAGE, own=OWN if (target / PAGE).is_file() else ())
        shutil.rmtree(aside)
    return target / PAGE


def _keep_cells(path: Path, results: FinetuneResults) -> None:
    """One line for each cell: what the page is written from again."""
    cells = [cell for part in results.cells.values() for cell in part]
    records.write_text(path, "".join(json.dumps(cell) + "\n" for cell in cells))


def content(results: FinetuneResults, others: Published | None, drawn: dict[str, Path]) -> list[Block]:
    """The page, top to bottom: scores, averages, what others report, curves, the grid, settings, machines."""
    blocks: list[Block] = [Paragraph(_lead(results), lead=True), TableBlock(tables.scores(results))]
    blocks += _figure(drawn, "scores")
    if table := tables.averages(results):
        blocks += [Heading("Averages"), TableBlock(table)]
    if others:
        blocks += [Heading("Beside what others report"), TableBlock(tables.published(results, others))]
        blocks += [Bullets(others.remarks)] if others.remarks else []
    blocks += [Heading("The metrics behind the scores"), TableBlock(tables.metrics(results))]
    if table := tables.grid(results):
        blocks += [Heading("The grid"), *_figure(drawn, "grid"), Details("In numbers", [TableBlock(table)])]
    if "learning_curves" in drawn:
        blocks += [Heading("Learning curves"), *_figure(drawn, "learning_curves"), *_figure(drawn, "dev_curves")]
    return [*blocks, Heading("How"), *_method(results)]


def _lead(results: FinetuneResults) -> str:
    partial = [task for task, part in results.tasks.items() if part.partial_split]
    text = f"Average over {_count(len(results.tasks), 'task')}: {words.score(results.average())} points"
    num_seeds = {len(part.scores) for part in results.tasks.values()}
    text += f" ({_count(num_seeds.pop(), 'seed') if len(num_seeds) == 1 else 'seeds differ'})."
    return text + (f" Not GLUE's rows: {', '.join(partial)}." if partial else "")


def _method(results: FinetuneResults) -> list[Block]:
    facts = [
        f"Model: {results.model}, hash of configuration, weights and tokenizer {results.summary.model_hash}.",
        f"Each score is that of the {results.summary.selection}.",
        f"Precision: {results.summary.precision}. {_cost(results)}",
    ]
    blocks: list[Block] = [Bullets(facts)]
    if table := tables.settings(results):
        blocks.append(Details("All settings", [TableBlock(_without_places_in(table))]))
    machines: list[Block] = [TableBlock(table) for table in tables.machines(results)]
    if machines:
        blocks.append(Details("Commit, versions, hardware", machines))
    return blocks


def _cost(results: FinetuneResults) -> str:
    num_cells = sum(len(cells) for cells in results.cells.values())
    seconds = results.seconds
    spent = f"{seconds:.0f} seconds" if seconds < 600 else f"{seconds / 3600:.2f} hours"
    return f"{_count(num_cells, 'cell')} took {spent} of training and evaluation, summed over processes."


def _figure(drawn: dict[str, Path], name: str) -> list[Block]:
    return [FigureBlock(drawn[name], CAPTIONS[name])] if name in drawn else []


def subtitle(results: FinetuneResults) -> str:
    """What was run, in one line."""
    num_cells = sum(len(part.cells) for part in results.tasks.values())
    return f"{_count(len(results.tasks), 'task')}, {_count(num_cells, 'cell')}, {results.summary.precision}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _csv_tables(results: FinetuneResults, others: Published | None) -> list[Table]:
    found = [
        tables.scores(results),
        tables.averages(results),
        tables.metrics(results),
        tables.grid(results),
        tables.cells(results),
        tables.published(results, others) if others else None,
    ]
    return [table for table in found if table is not None]


def _without_places(value: Any) -> Any:
    """Plain data with every path of this machine cut to its name: a kept page is for other machines."""
    if isinstance(value, dict):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    is_place = isinstance(value, str) and value.startswith(("/", "./", "../", "~"))
    return Path(value).name if is_place else value


def _without_places_in(table: Table) -> Table:
    return Table(table.name, table.title, table.columns, _without_places(table.rows), table.note)
