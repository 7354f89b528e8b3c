"""megatron-core's indexed format, written without importing it: that takes seconds in every worker process.

The bytes are those of its ``IndexedDatasetBuilder`` (tests compare), with one sequence for each document.
"""

import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

HEADER = b"MMIDIDX\x00\x00"
VERSION = 1
_CHUNK_DOCUMENTS = 1 << 20  # handled at a time
DTYPE_CODES = {"int32": 4, "uint16": 8}


class IndexedWriter:
    """Writes ``NAME.bin`` as documents come and ``NAME.idx`` when they are all there. A context manager.

    Args:
        dtype: ``"uint16"`` or ``"int32"``. Ids that do not fit would wrap in silence: the caller checks them.
    """

    def __init__(self, bin_path: Path, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._lengths: list[NDArray[np.int32]] = []
        self._file = bin_path.open("wb")

    def add(self, ids: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        """Append documents: all their ids, [tokens], and how many each has, [documents]."""
        self._file.write(ids.astype(self._dtype, copy=False).data)
        self._lengths.append(lengths)

    def finish(self, idx_path: Path) -> None:
        """Close the ``.bin`` and write the ``.idx``."""
        self._file.close()
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        write_index(idx_path, lengths, self._dtype.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_index(path: Path, lengths: NDArray[np.int32], dtype: str) -> None:
    """The ``.idx`` of documents of these ``lengths`` in tokens, [documents]."""
    num_documents, num_before = len(lengths), 0
    with path.open("wb") as file:
        file.write(HEADER + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], num_documents, num_documents + 1))
        file.write(lengths.astype(np.int32, copy=False).data)
        for first in range(0, num_documents, _CHUNK_DOCUMENTS):
            chunk = lengths[first : first + _CHUNK_DOCUMENTS]
            ends = num_before + np.cumsum(chunk, dtype=np.int64)
            file.write(((ends - chunk) * np.dtype(dtype).itemsize).data)
            num_before = int(ends[-1])
        for first in range(0, num_documents + 1, _CHUNK_DOCUMENTS):
            file.write(np.arange(first, min(first + _CHUNK_DOCUMENTS, num_documents + 1), dtype=np.int64).data)
