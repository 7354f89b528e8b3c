"""The spool: cleaned documents sorted into one file per shard, so that shards can be written independently.

``NAME.jsonl`` has a document a line, ``NAME.digests`` 16 bytes for each, by which duplicates are found.

Reading and cleaning is the stage that an interruption repeats from its start; everything after it resumes by shard.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.cleaned import clean_batch
from data_prep.read import fingerprint, read_batches, source_bytes
from data_prep.workers import WorkerPool
from kd_megatron.console import logs
from kd_megatron.errors import DataError
from kd_megatron.files import records
from kd_megatron.recipe import CorpusRecipe

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Spool:
    """A complete spool: documents per shard, what was read and dropped, and each source with its own counts."""

    documents: dict[str, int]
    statistics: dict[str, int]
    sources: list[dict[str, Any]]


def fill(recipe: CorpusRecipe, directory: Path, pool: WorkerPool) -> Spool:
    """Read and clean all sources into ``directory/NAME.jsonl``, or return the spool that is complete already.

    Raises:
        DataError: a source cannot be read, or nothing is left for a split.
    """
    marker = directory / "complete.json"
    if marker.exists():
        return Spool(**json.loads(marker.read_text(encoding="utf-8")))
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    documents: Counter[str] = Counter()
    statistics: Counter[str] = Counter()
    sources = []
    for index, source in enumerate(recipe.sources):
        counts = _fill_from(recipe, index, directory, pool, documents)
        statistics.update(counts)
        described = source.model_dump(mode="json", exclude_defaults=True) | {"licence": source.licence}
        sources.append(described | {"fingerprint": fingerprint(source), "documents_read": counts["documents_read"]})
    spool = Spool(dict(sorted(documents.items())), dict(sorted(statistics.items())), sources)
    _require_documents(recipe, spool)
    records.write_json(marker, spool.__dict__)
    return spool


def _fill_from(
    recipe: CorpusRecipe, index: int, directory: Path, pool: WorkerPool, documents: Counter[str]
) -> Counter[str]:
    source = recipe.sources[index]
    statistics: Counter[str] = Counter()
    total = source_bytes(source)
    with logs.progress_bar("MB") as progress:
        task = progress.add_task(
            f"reading source {index + 1} of {len(recipe.sources)}", total=total and total / _MEGABYTE, note=""
        )
        jobs = ((batch, recipe) for batch in read_batches(source))
        for cleaned in pool.map(clean_batch, jobs):
            for shard, lines in cleaned.lines.items():
                with (directory / f"{shard}.jsonl").open("a", encoding="utf-8", newline="\n") as file:
                    file.writelines(lines)
                with (directory / f"{shard}.digests").open("ab") as digests:
                    digests.write(b"".join(cleaned.digests[shard]))
                documents[shard] += len(lines)
            statistics.update(cleaned.statistics)
            note = f"{statistics['documents_read']:,} documents"
            progress.update(task, advance=cleaned.source_bytes / _MEGABYTE, note=note)
    return statistics


def _require_documents(recipe: CorpusRecipe, spool: Spool) -> None:
    counts = ", ".join(f"{name} {count:,}" for name, count in spool.statistics.items()) or "no documents at all"
    if not any(name.startswith("train") for name in spool.documents):
        raise DataError(
            given=f"no training document is left after cleaning ({counts})",
            expected="documents that pass the filters",
            fix="look at the sources, or loosen 'clean' in the recipe",
        )
    if recipe.valid_fraction > 0 and not any(name.startswith("valid") for name in spool.documents):
        raise DataError(
            given=f"none of the {sum(spool.documents.values())} documents fell into the held-out split "
            f"(valid_fraction {recipe.valid_fraction})",
            expected="at least one held-out document",
            fix="raise valid_fraction, or set it to 0 to hold nothing out",
        )
