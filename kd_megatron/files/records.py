"""Small files of a run: JSON written whole, and the rows of its metrics."""

import json
from pathlib import Path
from typing import Any

from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.ranks import process


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, all or nothing."""
    write_text(path, json.dumps(data, indent=2, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text``, all or nothing."""
    with atomic.new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and mirrors the numbers to TensorBoard (x axis: tokens).

    After a resume, rows that were written after the checkpoint are dropped, so that the file tells nothing twice.

    Args:
        num_rows: how many rows the run had when it went on from where it goes on now.
    """

    def __init__(self, directory: Path, num_rows: int = 0, tensorboard: bool = True) -> None:
        self.path, self.num_rows = directory / "metrics.jsonl", num_rows
        self._board: Any = None
        if not process.is_main():
            return
        directory.mkdir(parents=True, exist_ok=True)
        kept = read_metrics(directory)[:num_rows]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(directory / "tensorboard"))

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row``, which has at least ``step`` and ``tokens``."""
        if not process.is_main():
            return
        with disk_full_is_clear(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.num_rows += 1
            if self._board:
                for name, value in row.items():
                    if isinstance(value, int | float) and name != "tokens":
                        self._board.add_scalar(name, value, row["tokens"])

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board:
            self._board.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; a line torn by a crash is skipped."""
    return read_lines(directory / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON of each line of ``path``, none where there is no such file; a line torn by a crash is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
