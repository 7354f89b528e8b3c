"""One shard: spooled documents -> ids -> ``NAME.bin`` and ``NAME.idx``, checked, published by rename.

The entry ``NAME.json`` comes last: a shard with an entry is finished, everything else is written again.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep import verify, workers
from data_prep.assign import DIGEST_BYTES
from data_prep.encode import Encoded, Encoder, groups
from data_prep.indexed import IndexedWriter
from kd_megatron.errors import DataError
from kd_megatron.files import atomic
from kd_megatron.files.manifest import ShardEntry, file_sha256
from kd_megatron.recipe.config import Strict

UINT16_VOCABULARY = 65_500  # megatron-core's own limit, DType.optimal_dtype
_BATCH_CHARACTERS = 2_000_000
_DIGEST = np.dtype([("first", "<u8"), ("second", "<u8")])  # the 16 bytes of `assign.document_digest`
AT_A_TIME = 1 << 20  # digests compared with each other: about 60 MB


@dataclass(frozen=True)
class ShardJob:
    """What `write_shard` needs to know; travels to the worker."""

    name: str
    spool: Path  # one JSON string a line
    directory: Path  # of the finished shard
    tokenizer: Path
    end_id: int
    vocab_size: int
    deduplicate: bool


class ShardResult(Strict):
    """A written shard: its manifest entry (None when no document fell into it) and its share of the statistics."""

    entry: ShardEntry | None
    duplicates: int
    text_bytes: int


def token_dtype(vocab_size: int) -> Literal["uint16", "int32"]:
    """``"uint16"`` where every id fits, else ``"int32"``."""
    return "uint16" if vocab_size <= UINT16_VOCABULARY else "int32"


def write_shard(job: ShardJob) -> ShardResult:
    """Write one shard and its entry, then delete its spool. Done already: read the entry."""
    entry_path = job.directory / f"{job.name}.json"
    if entry_path.exists():
        return ShardResult.model_validate_json(entry_path.read_text(encoding="utf-8"))
    aside = job.directory / f"{job.name}.{os.getpid()}.partial.bin"
    num_documents = num_tokens = text_bytes = 0
    dtype = token_dtype(job.vocab_size)
    encoder = _encoder(job.tokenizer, job.end_id)
    with IndexedWriter(aside, dtype) as writer:
        for texts in groups(distinct(job.spool, job.deduplicate), _BATCH_CHARACTERS):
            encoded = encoder.encode(texts)
            require_ids_in_range(encoded, job.vocab_size, job.name)
            writer.add(encoded.ids, encoded.lengths)
            num_documents += len(texts)
            num_tokens += len(encoded.ids)
            text_bytes += sum(len(text.encode("utf-8")) for text in texts)
            workers.report(len(texts), len(encoded.ids))
        writer.finish(aside.with_suffix(".idx"))
    entry = _publish(job, aside, num_documents, num_tokens, dtype) if num_documents else None
    num_spooled = digests_of(job.spool).stat().st_size // DIGEST_BYTES
    result = ShardResult(entry=entry, duplicates=num_spooled - num_documents, text_bytes=text_bytes)
    with atomic.new_file(entry_path) as finished:
        finished.write_text(result.model_dump_json(), encoding="utf-8")
    for path in (job.spool, digests_of(job.spool)):
        path.unlink(missing_ok=True)
    return result


def _publish(job: ShardJob, aside: Path, num_documents: int, num_tokens: int, dtype: str) -> ShardEntry:
    idx_aside = aside.with_suffix(".idx")
    entry = ShardEntry(
        name=job.name,
        split="valid" if job.name.startswith("valid") else "train",
        documents=num_documents,
        tokens=num_tokens,
        bin_bytes=aside.stat().st_size,
        bin_sha256=file_sha256(aside),
        idx_sha256=file_sha256(idx_aside),
    )
    os.replace(aside, job.directory / f"{job.name}.bin")
    os.replace(idx_aside, job.directory / f"{job.name}.idx")
    verify.check_shard(job.directory, entry, dtype, job.vocab_size, full=True)
    return entry


def require_ids_in_range(encoded: Encoded, vocab_size: int, shard: str) -> None:
    """Raise `DataError` for an id that is not of the vocabulary: what is stored as uint16 would wrap in silence."""
    lowest, highest = int(encoded.ids.min(initial=0)), int(encoded.ids.max(initial=0))
    if lowest < 0 or highest >= vocab_size:
        raise DataError(
            given=f"shard {shard}: token id {lowest if lowest < 0 else highest}",
            expected=f"ids from 0 to {vocab_size - 1}, the tokenizer's vocabulary",
            fix="the tokenizer's files contradict each other: load another one",
        )


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, end_id: int) -> Encoder:
    return Encoder(tokenizer, end_id)


def digests_of(spool: Path) -> Path:
    """The file of digests beside a spool."""
    return spool.with_suffix(".digests")


def distinct(spool: Path, deduplicate: bool) -> Iterator[str]:
    """The documents of a spool, in order, one at a time; of equal ones the first alone if ``deduplicate``."""
    if not deduplicate:
        yield from read_spool(spool)
        return
    skipped = repeated(digests_of(spool))
    yield from (text for text, skip in zip(read_spool(spool), skipped, strict=True) if not skip)


def read_spool(path: Path) -> Iterator[str]:
    """The documents of a spool, in order, one at a time; none when nothing fell into the shard."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def repeated(path: Path) -> NDArray[np.bool_]:
    """[documents] whether each document's digest occurs earlier in the file ``path``: one byte a document.

    The digests are compared part by part, a part being those whose first word has one remainder; the file is read once
    for each part.
    """
    num_documents = path.stat().st_size // _DIGEST.itemsize
    is_repeated = np.zeros(num_documents, np.bool_)
    num_parts = -(-num_documents // AT_A_TIME)
    for part in range(num_parts):
        digests, places = _digests_in(path, num_documents, part, num_parts)
        order = np.lexsort((places, digests["second"], digests["first"]))
        ordered = digests[order]
        is_repeated[places[order[1:]][ordered[1:] == ordered[:-1]]] = True
    return is_repeated


def _digests_in(path: Path, num_documents: int, part: int, num_parts: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The digests of one part, and the places of their documents."""
    digests, places = [], []
    for first in range(0, num_documents, AT_A_TIME):
        chunk = np.fromfile(path, _DIGEST, AT_A_TIME, offset=first * _DIGEST.itemsize)
        chosen = np.flatnonzero(chunk["first"] % np.uint64(num_parts) == np.uint64(part))
        digests.append(chunk[chosen])
        places.append(chosen + first)
    return np.concatenate(digests), np.concatenate(places)
