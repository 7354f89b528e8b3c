"""A prepared shard set: manifest, tokenizer and checked shards of one split (docs/data_format.md), cut into windows.

Windows of L tokens are [CLS], L - 2 tokens of the stream, [SEP], without padding. Each document in the stream already
ends with [SEP]; a window takes up where the one before it ended.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_megatron.console import logs
from kd_megatron.data.index import Shard, VerifiedFiles, open_shard
from kd_megatron.data.special_tokens import SpecialTokens, read_special_tokens
from kd_megatron.files.manifest import TOKENIZER, Manifest, ShardEntry, read_manifest, require_tokenizer_files

_SLOW_BYTES = 1 << 29  # above this, checking takes long enough for a progress bar


@dataclass(frozen=True)
class ShardSet:
    """One split of a shard set, every shard checked against the manifest."""

    path: Path
    manifest: Manifest
    special: SpecialTokens
    shards: list[Shard]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's directory, in Hugging Face format."""
        return self.path / TOKENIZER


def open_shard_set(path: Path | str, split: str) -> ShardSet:
    """Open one split of the shard set in the directory ``path``.

    Raises:
        DataError: there is no shard set, or a file of it differs from the manifest; names the file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    require_tokenizer_files(path, manifest)
    special = read_special_tokens(path / TOKENIZER, manifest.tokenizer_sha256, manifest.vocab_size)
    return ShardSet(path, manifest, special, _open_all(path, manifest, manifest.split(split)))


def _open_all(path: Path, manifest: Manifest, entries: list[ShardEntry]) -> list[Shard]:
    verified, shards = VerifiedFiles(path), []
    unread = sum(e.bin_bytes for e in entries if not _is_known(verified, path, e))
    with logs.progress_bar("shards") as bar:
        bar.disable = bar.disable or unread < _SLOW_BYTES
        task = bar.add_task(f"checking {path.name}", total=len(entries), note="")
        for entry in entries:
            shards.append(open_shard(path, entry, manifest.dtype, manifest.vocab_size, verified))
            verified.save(at_once=False)  # an interrupted check of many shards is not begun anew
            bar.advance(task)
    verified.save()
    return shards


def _is_known(verified: VerifiedFiles, path: Path, entry: ShardEntry) -> bool:
    bin_path = path / f"{entry.name}.bin"
    return not bin_path.is_file() or verified.knows(bin_path, entry.bin_sha256)


class WindowDataset:
    """All windows of one shard set, in natural order: shard by shard, document by document.

    Holds 4 bytes per window and memory maps; nothing is read before it is asked for.

    Args:
        sequence_length: L, with [CLS] and [SEP].
    """

    def __init__(self, shard_set: ShardSet, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self._special, self._shards = shard_set.special, shard_set.shards
        self._starts = [shard.window_starts(sequence_length - 2) for shard in self._shards]
        self._ends = np.cumsum([len(starts) for starts in self._starts], dtype=np.int64)  # of each shard, in windows

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def gather(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, L] int64 token ids of the windows with these numbers ([B], in [0, len)), one read per shard touched.

        Raises:
            DataError: a shard's file changed or vanished since it was opened; names it.
        """
        token_ids = np.empty((len(windows), self.sequence_length), np.int64)
        token_ids[:, 0], token_ids[:, -1] = self._special.cls_id, self._special.sep_id
        if len(self._shards) == 1:
            rows_by_shard: list[tuple[int, Any]] = [(0, slice(None))] if len(windows) else []
        else:
            rows_by_shard = _grouped(np.searchsorted(self._ends, windows, side="right"))
        for shard, rows in rows_by_shard:
            starts = self._starts[shard]
            local = windows[rows] - (self._ends[shard] - len(starts))
            token_ids[rows, 1:-1] = self._shards[shard].gather(starts[local], self.sequence_length - 2)
        return token_ids


def _grouped(owners: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Each owner that occurs, with its places in ``owners``: one sort, however many owners there are."""
    order = np.argsort(owners, kind="stable")
    found, firsts = np.unique(owners[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, firsts[1:]), strict=True)) if len(found) else []
