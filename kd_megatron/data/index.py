"""One shard: checked against its manifest when it is opened, then read as a flat memory map.

The only file that imports megatron-core, and only its compiled helpers: ``import megatron.core`` takes three seconds
and prints warnings, the helpers alone load in milliseconds. megatron's own reader is not used because it accepts a
truncated ``.bin``, flipped pointers and another shard's ``.idx`` without a word, and because its arrays dangle once the
dataset object is gone; arrays here own a reference to their map.
"""

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_megatron.data.mapped import REPAIR, MappedFile
from kd_megatron.data.verified import VerifiedFiles
from kd_megatron.errors import DataError, EnvironmentFault
from kd_megatron.files.manifest import ShardEntry, file_sha256, most_index_bytes, require_plausible_size

# The .idx format of megatron-core: magic, version 1, dtype code, numbers of sequences and of document boundaries,
# then int32 lengths, int64 byte offsets and int64 document boundaries.
_HEADER = np.dtype([("magic", "S9"), ("version", "<u8"), ("dtype", "u1"), ("sequences", "<u8"), ("boundaries", "<u8")])
_MAGIC = b"MMIDIDX"
_DTYPES = {8: "uint16", 4: "int32"}


@dataclass(frozen=True)
class Shard:
    """A shard whose files agree with the manifest."""

    entry: ShardEntry
    file: MappedFile
    lengths: NDArray[np.int32]  # [documents]

    @property
    def tokens(self) -> NDArray[Any]:
        """[tokens] uint16 or int32, a read-only memory map."""
        return self.file.tokens

    def window_starts(self, length: int) -> NDArray[np.integer[Any]]:
        """[num_windows] flat offset of each window of ``length`` tokens, from megatron's sample index.

        Windows follow one another through the documents in their order; the last, partial one is dropped.
        """
        if self.entry.tokens < length:
            return np.zeros(0, np.uint32)
        documents = np.arange(len(self.lengths), dtype=np.int32)
        # One epoch, the partial window dropped, no extra token: a masked-language model predicts no next token.
        sample_index = _helpers().build_sample_idx_int32(
            self.lengths, documents, length, 1, self.entry.tokens, True, 0
        )  # [num_windows + 1, 2]: document, offset in the document
        offsets = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        starts = offsets[sample_index[:-1, 0]] + sample_index[:-1, 1]
        return starts.astype(np.uint32 if self.entry.tokens < 2**32 else np.int64)

    def gather(self, starts: NDArray[Any], length: int) -> NDArray[Any]:
        """[num_windows, length] the tokens of the windows at ``starts``, a copy.

        Raises:
            DataError: the file is not what was opened any more; names it.
        """
        return self.file.read(starts, length)


def open_shard(directory: Path, entry: ShardEntry, dtype: str, vocab_size: int, verified: VerifiedFiles) -> Shard:
    """Open ``directory``/NAME.bin and .idx after checking them.

    Sizes, structure and the checksum of the ``.idx`` are checked every time, the checksum of the ``.bin`` unless
    ``verified`` remembers that this very file was found good.

    Raises:
        DataError: anything at all differs from the manifest; names the file.
    """
    bin_path, idx_path = (directory / f"{entry.name}.{suffix}" for suffix in ("bin", "idx"))
    for path in (bin_path, idx_path):
        if not path.is_file():
            raise DataError(f"{path} is missing", f"every shard that {directory}/manifest.json lists", REPAIR)
    try:
        lengths = _read_lengths(idx_path, entry, dtype)
        return Shard(entry, _open_bin(bin_path, entry, lengths, dtype, vocab_size, verified), lengths)
    except OSError as error:
        raise DataError(f"{error.filename or bin_path} cannot be read: {error}", "a readable file", REPAIR) from error


def _open_bin(
    path: Path, entry: ShardEntry, lengths: NDArray[np.int32], dtype: str, vocab_size: int, verified: VerifiedFiles
) -> MappedFile:
    _require(path, "bytes", path.stat().st_size, entry.bin_bytes)
    _require(path, "bytes", entry.bin_bytes, int(lengths.sum(dtype=np.int64)) * np.dtype(dtype).itemsize)
    file = MappedFile(path, dtype, entry.bin_sha256)
    _require(path, "tokens", file.tokens.size, entry.tokens)
    if not verified.knows(path, entry.bin_sha256):
        _require(path, "sha256", file_sha256(path), entry.bin_sha256)
        file.require_unchanged()
        _require_ids_in_range(path, file.tokens, vocab_size)
        verified.add(path, entry.bin_sha256)
    file.require_unchanged()  # what is mapped is what was checked
    return file


def _read_lengths(path: Path, entry: ShardEntry, dtype: str) -> NDArray[np.int32]:
    """The length of each document, after checking the whole ``.idx`` file: its checksum and its structure."""
    require_plausible_size(path, most_index_bytes(entry))
    content = path.read_bytes()
    _require(path, "sha256", hashlib.sha256(content).hexdigest(), entry.idx_sha256)
    if len(content) < _HEADER.itemsize or not content.startswith(_MAGIC):
        raise DataError(f"{path} is not an index of megatron-core", "a file that starts with MMIDIDX", REPAIR)
    header = np.frombuffer(content, _HEADER, count=1)[0]
    _require(path, "version", int(header["version"]), 1)
    _require(path, "dtype", _DTYPES.get(int(header["dtype"]), f"code {header['dtype']}"), dtype)
    num_sequences, num_boundaries = int(header["sequences"]), int(header["boundaries"])
    _require(path, "documents", num_boundaries - 1, entry.documents)
    _require(path, "bytes", len(content), _HEADER.itemsize + 12 * num_sequences + 8 * num_boundaries)
    at = _HEADER.itemsize
    lengths = np.frombuffer(content, np.int32, num_sequences, at)
    pointers = np.frombuffer(content, np.int64, num_sequences, at + 4 * num_sequences)
    boundaries = np.frombuffer(content, np.int64, num_boundaries, at + 12 * num_sequences)
    ends = np.cumsum(lengths, dtype=np.int64)
    if (lengths < 0).any() or not np.array_equal(pointers, (ends - lengths) * np.dtype(dtype).itemsize):
        raise DataError(f"{path}: its pointers are not the running sum of its lengths", "an intact index", REPAIR)
    if boundaries[0] != 0 or boundaries[-1] != num_sequences or (np.diff(boundaries) < 0).any():
        raise DataError(f"{path}: its document boundaries are out of order", "an intact index", REPAIR)
    _require(path, "tokens", int(ends[-1]) if num_sequences else 0, entry.tokens)
    return lengths


def _require(path: Path, what: str, given: Any, expected: Any) -> None:
    if given != expected:
        raise DataError(f"{path} was altered or torn: {what} {given}", f"{what} {expected}", REPAIR)


def _require_ids_in_range(path: Path, tokens: NDArray[Any], vocab_size: int) -> None:
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise DataError(
            f"{path} has token ids from {tokens.min()} to {tokens.max()}",
            f"ids below the vocabulary size {vocab_size}",
            "prepare the shard set again with its own tokenizer",
        )


@functools.cache
def _helpers() -> ModuleType:
    """megatron-core's compiled helpers, without importing the package around them."""
    package = importlib.util.find_spec("megatron")
    for location in (package.submodule_search_locations or []) if package else []:
        for path in sorted(Path(location, "core", "datasets").glob("helpers_cpp*.so")):
            spec = importlib.util.spec_from_file_location("helpers_cpp", path)
            if spec and spec.loader:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise EnvironmentFault(
        given="megatron-core's compiled helpers (megatron/core/datasets/helpers_cpp*.so) are not installed",
        expected="the megatron-core of requirements.txt",
        fix="delete .venv and run ./launch.sh again",
    )
