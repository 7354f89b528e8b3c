"""Is a shard set what its manifest says? Every way in which a shard can be torn or altered is a `DataError`.

megatron-core opens a truncated ``.bin``, a foreign ``.idx`` or flipped bits without a word and trains on garbage.
The index is read here from its bytes (docs/data_format.md), not through the library that wrote it.
"""

import struct
from pathlib import Path

import numpy as np
import tokenizers

from data_prep.indexed import DTYPE_CODES, HEADER, VERSION
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import (
    TOKENIZER,
    Manifest,
    ShardEntry,
    file_sha256,
    most_index_bytes,
    read_manifest,
    require_plausible_size,
    require_tokenizer_files,
    vocabulary_hash,
)

HEADER_BYTES = 34  # magic 9, version 8, dtype code 1, number of sequences 8, number of document bounds 8
_CHUNK_TOKENS = 1 << 24
_CHUNK_DOCUMENTS = 1 << 20


def verify(directory: Path | str, full: bool = True) -> Manifest:
    """Check every shard and the tokenizer of a shard set against its manifest.

    Args:
        full: read everything (sha256 of each file, every id below the vocabulary's size); otherwise sizes, counts
            and the structure of each index.

    Returns:
        The manifest.

    Raises:
        DataError: naming the file that is missing, torn, altered or of another set.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    require_tokenizer_files(directory, manifest)
    check_tokenizer(directory, manifest)
    for entry in manifest.shards:
        check_shard(directory, entry, manifest.dtype, manifest.vocab_size, full)
    return manifest


def check_tokenizer(directory: Path, manifest: Manifest) -> None:
    """The tokenizer beside the shards is the one that made them. Raises `DataError`."""
    path = directory / TOKENIZER / "tokenizer.json"
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            given=f"{path} cannot be read: {error}",
            expected="the tokenizer that made the shards",
            fix="prepare the shard set again",
        ) from error
    if vocabulary_hash(vocabulary) != manifest.tokenizer_sha256:
        raise _mismatch(path, "the vocabulary's hash", vocabulary_hash(vocabulary), manifest.tokenizer_sha256)
    require(path, "the vocabulary's size", max(vocabulary.values(), default=-1) + 1, manifest.vocab_size)


def files_of(directory: Path, entry: ShardEntry) -> tuple[Path, Path]:
    """The ``.bin`` and the ``.idx`` of a shard. Raises `DataError` where one is missing."""
    bin_path, idx_path = directory / f"{entry.name}.bin", directory / f"{entry.name}.idx"
    for path in (bin_path, idx_path):
        if not path.is_file():
            raise DataError(
                given=f"{path} is missing", expected="the file its manifest lists", fix="copy or prepare the set again"
            )
    return bin_path, idx_path


def check_shard(directory: Path, entry: ShardEntry, dtype: str, vocab_size: int, full: bool) -> None:
    """One shard's two files against its entry. Raises `DataError`."""
    bin_path, idx_path = files_of(directory, entry)
    try:
        require(bin_path, "bytes", bin_path.stat().st_size, entry.bin_bytes)
        require_plausible_size(idx_path, most_index_bytes(entry))
        if full:
            require(idx_path, "sha256", file_sha256(idx_path), entry.idx_sha256)
            require(bin_path, "sha256", file_sha256(bin_path), entry.bin_sha256)
        _check_index(idx_path, entry, dtype)
        if full:
            _check_ids(bin_path, dtype, vocab_size)
    except OSError as error:
        raise DataError(
            given=f"{error.filename or bin_path} cannot be read: {error}",
            expected="a readable file",
            fix="copy it again, or prepare the set again",
        ) from error


def _check_index(path: Path, entry: ShardEntry, dtype: str) -> None:
    """In pieces: an index of any length takes the same memory."""
    dtype_code, num_sequences, num_bounds = read_header(path)
    require(path, "the dtype code", dtype_code, DTYPE_CODES[dtype])
    require(path, "documents", num_sequences, entry.documents)
    require(path, "document bounds", num_bounds, entry.documents + 1)
    num_tokens = 0
    for first in range(0, entry.documents + 1, _CHUNK_DOCUMENTS):
        count = min(_CHUNK_DOCUMENTS, entry.documents - first)
        lengths = np.fromfile(path, np.int32, count, offset=HEADER_BYTES + 4 * first)
        pointers = np.fromfile(path, np.int64, count, offset=HEADER_BYTES + 4 * num_sequences + 8 * first)
        if (lengths < 0).any():
            raise _mismatch(path, "a length", str(lengths.min()), "0 or more")
        ends = num_tokens + np.cumsum(lengths, dtype=np.int64)
        if not np.array_equal(pointers, (ends - lengths) * np.dtype(dtype).itemsize):
            raise _mismatch(path, "the pointers", "others", "the cumulative lengths")
        num_tokens = int(ends[-1]) if count else num_tokens
        count = min(_CHUNK_DOCUMENTS, num_bounds - first)
        bounds = np.fromfile(path, np.int64, count, offset=HEADER_BYTES + 12 * num_sequences + 8 * first)
        if not np.array_equal(bounds, np.arange(first, first + count)):
            raise _mismatch(path, "the document bounds", "others", "one sequence for each document")
    require(path, "tokens", num_tokens, entry.tokens)
    require(path, "the end of the last document, in bytes", num_tokens * np.dtype(dtype).itemsize, entry.bin_bytes)


def read_header(path: Path) -> tuple[int, int, int]:
    """The code of the dtype, the numbers of sequences and of document bounds, which fit the file's size."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(HEADER):
        raise _mismatch(path, "the header", repr(header[:9]), repr(HEADER))
    version, dtype_code, num_sequences, num_bounds = struct.unpack_from("<QBQQ", header, len(HEADER))
    num_bytes, expected = path.stat().st_size, HEADER_BYTES + 12 * num_sequences + 8 * num_bounds
    if version != VERSION or num_bytes != expected:
        raise _mismatch(path, "bytes", str(num_bytes), f"{expected} by its own header (version {version})")
    return dtype_code, num_sequences, num_bounds


def _check_ids(path: Path, dtype: str, vocab_size: int) -> None:
    # Read, not mapped: a file that shrinks meanwhile is read short instead of killing the process.
    for first in range(0, path.stat().st_size, _CHUNK_TOKENS * np.dtype(dtype).itemsize):
        chunk = np.fromfile(path, dtype, _CHUNK_TOKENS, offset=first)
        if chunk.size and (chunk.min() < 0 or chunk.max() >= vocab_size):
            raise _mismatch(path, "an id", f"{chunk.min()} ... {chunk.max()}", f"0 ... {vocab_size - 1}")


def require(path: Path, what: str, given: object, expected: object) -> None:
    """Raise `DataError` where ``given`` is not what the manifest says it is."""
    if given != expected:
        raise _mismatch(path, what, str(given), str(expected))


def _mismatch(path: Path, what: str, given: str, expected: str) -> DataError:
    return DataError(
        given=f"{path} does not match its manifest: {what}: {given}",
        expected=expected,
        fix="the file is torn, altered or of another shard set: copy it again, or prepare the set again",
    )
