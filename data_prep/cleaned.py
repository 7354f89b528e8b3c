"""What a worker does with a batch of documents before they are spooled. Imports nothing that is slow to import."""

import json
from collections import Counter
from dataclasses import dataclass, field

from data_prep.assign import document_digest, shard_of
from data_prep.clean import clean_text, reason_to_drop
from data_prep.read import Batch
from kd_megatron.recipe import CorpusRecipe


@dataclass
class CleanedBatch:
    """What a worker sends back: for each shard the lines to append and their documents' digests; and the counts."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, list[bytes]] = field(default_factory=dict)
    statistics: Counter[str] = field(default_factory=Counter)
    source_bytes: int = 0


def clean_batch(job: tuple[Batch, CorpusRecipe]) -> CleanedBatch:
    """Clean the documents of a batch and sort the kept ones by shard."""
    batch, recipe = job
    cleaned = CleanedBatch(source_bytes=batch.source_bytes)
    for raw in batch.documents():
        text = clean_text(raw)
        cleaned.statistics["documents_read"] += 1
        if reason := reason_to_drop(text, recipe.clean):
            cleaned.statistics[reason] += 1
            continue
        digest = document_digest(text)
        shard = shard_of(digest, recipe)
        cleaned.digests.setdefault(shard, []).append(digest)
        cleaned.lines.setdefault(shard, []).append(json.dumps(text, ensure_ascii=False) + "\n")
    return cleaned
