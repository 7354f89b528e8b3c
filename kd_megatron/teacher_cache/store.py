"""Rows of fixed size in files, each with a checksum: what is not there whole counts as not there.

``rows-NNNNN.bin`` hold the rows, at places that follow from their numbers; ``index.bin`` holds four bytes for each row:
0 while it is absent, else the CRC-32 of its bytes, written after them. A row torn by ``kill -9``, a power failure or a
flipped bit does not fit its checksum and is absent: the teacher is asked again. A row is compared with its checksum at
its first reading, or for all rows when a run opens the store (`drop_damaged`), and then read without: a checksum takes
longer than the copy from memory. Nothing is ever read or written through a memory map, where a full disk or a shortened
file would end the process.

Several processes may share a store (one file system): they open the same files and write rows of their own.
"""

import json
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files.records import write_json

INDEX, FILL_COST = "index.bin", "fill_cost.json"
FILE_BYTES = 256 * 2**20
FEWEST_READERS, MOST_READERS = 4, 32  # threads: reading and checking run outside Python's lock
Index = NDArray[np.int64]


@dataclass(frozen=True)
class FillCost:
    """What it took to make rows: wall-clock seconds of one process, over all runs."""

    seconds: float
    rows: int
    teacher_seconds: float = 0.0  # of it, the teacher's own; 0 where an earlier version did not record it

    @property
    def seconds_per_row(self) -> float:
        """The mean."""
        return self.seconds / self.rows

    @property
    def teacher_seconds_per_row(self) -> float | None:
        """What the teacher took of it, without encoding and writing; None where that was not recorded."""
        return self.teacher_seconds / self.rows if self.teacher_seconds else None


class Store:
    """The rows of one directory.

    Args:
        row_bytes: of each row.
        num_rows: rows 0 .. num_rows - 1 may be asked for.
    """

    def __init__(self, directory: Path, row_bytes: int, num_rows: int) -> None:
        self.directory, self.row_bytes, self.num_rows = directory, row_bytes, num_rows
        self.rows_per_file = max(1, FILE_BYTES // row_bytes)
        self.fill_cost = _read_fill_cost(directory / FILL_COST)
        self._files: dict[str, int] = {}
        self._opening = threading.Lock()
        self._num_readers = num_readers()
        self._readers = ThreadPoolExecutor(self._num_readers, thread_name_prefix="teacher_cache")

    @cached_property
    def _trusted(self) -> NDArray[np.bool_]:
        """[num_rows]: whether a row was seen to fit its checksum, by this process or by another of its run."""
        return np.zeros(self.num_rows, np.bool_)

    def read(self, rows: Index) -> tuple[Tensor, NDArray[np.bool_]]:
        """The bytes of ``rows`` ([B]): ([B, row_bytes] uint8, [B] whether each is there); others hold no meaning."""
        shape, pinned = (len(rows), self.row_bytes), torch.cuda.is_available()
        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        data = buffer.numpy()
        self._trusted[:0] = False  # is made here, and not by several threads at once
        parts = [part for part in np.array_split(np.arange(len(rows)), self._num_readers) if part.size]
        present = self._readers.map(lambda part: [self._read_row(int(rows[i]), data[i]) for i in part], parts)
        return buffer, np.array([there for part in present for there in part], np.bool_)

    def _read_row(self, row: int, into: NDArray[np.uint8]) -> bool:
        recorded = int.from_bytes(os.pread(self._open(INDEX), 4, 4 * row), "little")
        if recorded == 0:
            return False
        file, offset = self._place(row)
        if os.preadv(file, [into.data], offset) != self.row_bytes:
            return False
        if not self._trusted[row]:
            self._trusted[row] = checksum(row, into) == recorded
        return bool(self._trusted[row])

    def write(self, rows: Index, data: Tensor) -> None:
        """Keep ``data`` [B, row_bytes] uint8, on the CPU, as ``rows`` ([B]).

        Raises:
            OutputError: the disk is full; what was written whole stays, the rest is absent.
        """
        with disk_full_is_clear(self.directory):
            for row, content in zip(rows.tolist(), data.numpy(), strict=True):
                self._trusted[row] = False
                file, offset = self._place(row)
                _write_all(file, content.data, offset)
                _write_all(self._open(INDEX), memoryview(checksum(row, content).to_bytes(4, "little")), 4 * row)

    def add_fill_cost(self, seconds: float, num_rows: int, teacher_seconds: float = 0.0) -> None:
        """Record that ``num_rows`` rows took ``seconds``, of which ``teacher_seconds`` were the teacher's own."""
        before = self.fill_cost or FillCost(0.0, 0)
        of_teacher = before.teacher_seconds + teacher_seconds
        self.fill_cost = FillCost(before.seconds + seconds, before.rows + num_rows, of_teacher)

    def write_fill_cost(self) -> None:
        """Write what `add_fill_cost` recorded, all or nothing. One process does, for all."""
        if self.fill_cost is not None:
            with disk_full_is_clear(self.directory):
                write_json(self.directory / FILL_COST, asdict(self.fill_cost))

    def checksums(self) -> NDArray[np.uint32]:
        """Of rows 0, 1, ... as far as the index goes: 0 where one is absent; others may yet be torn (`verify`)."""
        index = self._open(INDEX)
        recorded = min(self.num_rows, os.fstat(index).st_size // 4)
        return np.frombuffer(os.pread(index, 4 * recorded, 0), "<u4")

    def num_present(self) -> int:
        """How many rows have a checksum."""
        return int(np.count_nonzero(self.checksums()))

    def drop_damaged(self, share: int = 0, shares: int = 1) -> list[int]:
        """Compare one of so many shares of the rows with their checksums; those that do not fit become absent.

        Returns:
            The numbers of the rows that were damaged.
        """
        damaged = self.verify(share, shares)
        with disk_full_is_clear(self.directory):
            for row in damaged:
                _write_all(self._open(INDEX), memoryview(bytes(4)), 4 * row)
        return damaged

    def trust_present(self) -> None:
        """Read the rows that are there now without comparing them: `drop_damaged` of all shares has just done that."""
        present = self.checksums() != 0
        self._trusted[: len(present)] = present

    def verify(self, share: int = 0, shares: int = 1) -> list[int]:
        """Read every row, or a share of them: the numbers of those that do not fit their checksum."""
        rows = np.flatnonzero(self.checksums())
        rows = rows[rows % shares == share]  # by number: other ranks may be dropping rows of theirs at this moment
        self._trusted[rows] = False
        batch = max(1, 2**26 // self.row_bytes)
        parts = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        return [int(row) for part in parts for row in part[~self.read(part)[1]]]

    def disk_bytes(self) -> int:
        """What the files take on the disk: rows that are absent take no room."""
        return sum(path.stat().st_blocks * 512 for path in self.directory.iterdir() if path.is_file())

    def close(self) -> None:
        """Bring everything to the disk, rows before the index, and close the files. May be called twice."""
        self._readers.shutdown()
        for name in sorted(self._files, key=lambda name: name == INDEX):
            with disk_full_is_clear(self.directory):
                os.fsync(self._files[name])
            os.close(self._files[name])
        self._files.clear()

    def _place(self, row: int) -> tuple[int, int]:
        """The open file that holds ``row``, and where."""
        number, place = divmod(row, self.rows_per_file)
        return self._open(f"rows-{number:05d}.bin"), place * self.row_bytes

    def _open(self, name: str) -> int:
        with self._opening:
            if name not in self._files:
                self._files[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            return self._files[name]


def num_readers() -> int:
    """Threads of one process: its share of the cores, as a launcher tells how many processes a machine has."""
    local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1))
    return min(MOST_READERS, max(FEWEST_READERS, len(os.sched_getaffinity(0)) // local))


def checksum(row: int, content: NDArray[np.uint8]) -> int:
    """CRC-32 of a row's bytes, begun with its number, so that a row in another's place does not fit; never 0."""
    return zlib.crc32(content.data, row & 0xFFFFFFFF) or 1


def _write_all(file: int, content: memoryview, offset: int) -> None:
    """`os.pwrite` may write a part and say so; on a full disk the next call raises."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _read_fill_cost(path: Path) -> FillCost | None:
    """None where nothing is recorded, or what is there cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        cost = FillCost(float(found["seconds"]), int(found["rows"]), float(found.get("teacher_seconds", 0.0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cost if cost.rows > 0 else None
