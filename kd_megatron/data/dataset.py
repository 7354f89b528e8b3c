"""Windows of L tokens over the documents of a shard set: [CLS], L - 2 tokens of the stream, [SEP]. No padding.

Each document in the stream already ends with [SEP]; a window takes up where the one before it ended.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_megatron.data.shards import ShardSet


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
