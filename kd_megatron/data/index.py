"""One shard: checked against its manifest when it is opened, then read as a flat memory map.

The only file that imports megatron-core, and only its compiled helpers: ``import megatron.core`` takes three seconds
and prints warnings, the helpers alone load in milliseconds. megatron's own reader is not used because it accepts a
truncated ``.bin``, flipped pointers and another shard's ``.idx`` without a word, and because its arrays dangle once the
dataset object is gone; arrays here own a reference to their map.

A file that was read in full and found to match its checksum is remembered by name, size, modification and change times,
inode and checksum, in a small file beside the shards, written atomically; where the directory is read-only that is
simply not kept.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import verify
from kd_megatron.data.mapped import REPAIR, MappedFile
from kd_megatron.errors import DataError, EnvironmentFault
from kd_megatron.files import atomic
from kd_megatron.files.manifest import ShardEntry, require_plausible_size

MEMORY = ".verified.json"
_SAVE_SECONDS = 5.0  # between writes while many shards are checked; the last are written at the end
SETTLED_SECONDS = 2.0  # a file changed within the clock's granularity of the check would keep its time stamps

Stamp = list[int | str]


class VerifiedFiles:
    """The verified files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MEMORY
        self._stamps: dict[str, Stamp] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError, DataError):
            require_plausible_size(self._path)
            found = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
            self._stamps = found if isinstance(found, dict) else {}
        self._changed, self._saved_at = False, time.monotonic()

    def knows(self, path: Path, sha256: str) -> bool:
        """Whether this very file was found to have this checksum."""
        return self._stamps.get(path.name) == _stamp(path, sha256)

    def add(self, path: Path, sha256: str) -> None:
        """Note that the file was found to have this checksum, unless it was written a moment ago."""
        status = path.stat()
        if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
            self._stamps[path.name] = _stamp(path, sha256)
            self._changed = True

    def save(self, at_once: bool = True) -> None:
        """Write what was added, all or nothing and as well as the directory allows.

        Processes that open the set together each rename a file of their own into place: the last one stays, whole. It
        may lack what another one added, which is then found good once more.
        """
        if not self._changed or (not at_once and time.monotonic() - self._saved_at < _SAVE_SECONDS):
            return
        with contextlib.suppress(OSError), atomic.new_file(self._path, by_many=True) as aside:
            aside.write_text(json.dumps(self._stamps), encoding="utf-8")
        self._changed, self._saved_at = False, time.monotonic()


def _stamp(path: Path, sha256: str) -> Stamp:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256]


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
    bin_path, idx_path = verify.files_of(directory, entry)
    try:
        file = MappedFile(bin_path, dtype, entry.bin_sha256)
        is_known = verified.knows(bin_path, entry.bin_sha256)
        verify.check_shard(directory, entry, dtype, vocab_size, full=not is_known)
        index = idx_path.read_bytes()
        verify.require(idx_path, "sha256", hashlib.sha256(index).hexdigest(), entry.idx_sha256)
        verify.require(bin_path, "tokens", file.tokens.size, entry.tokens)
        file.require_unchanged()  # what is mapped is what was checked
        if not is_known:
            verified.add(bin_path, entry.bin_sha256)
    except OSError as error:
        raise DataError(f"{error.filename or bin_path} cannot be read: {error}", "a readable file", REPAIR) from error
    return Shard(entry, file, np.frombuffer(index, np.int32, entry.documents, verify.HEADER_BYTES))


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
