"""A ``.idx`` file of a shard set as arrays: what tests and measurements compare; training reads it in `data.index`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.verify import HEADER_BYTES, read_header


@dataclass(frozen=True)
class ShardIndex:
    """A ``.idx`` file: lengths in tokens [documents], byte pointers [documents], document bounds [documents + 1]."""

    dtype_code: int
    lengths: np.ndarray
    pointers: np.ndarray
    bounds: np.ndarray


def read_index(path: Path) -> ShardIndex:
    """Parse a ``.idx`` file. Raises `DataError` when it is not one, or not complete."""
    dtype_code, num_sequences, num_bounds = read_header(path)
    content = path.read_bytes()
    lengths = np.frombuffer(content, np.int32, num_sequences, HEADER_BYTES)
    pointers = np.frombuffer(content, np.int64, num_sequences, HEADER_BYTES + 4 * num_sequences)
    bounds = np.frombuffer(content, np.int64, num_bounds, HEADER_BYTES + 12 * num_sequences)
    return ShardIndex(dtype_code, lengths, pointers, bounds)
