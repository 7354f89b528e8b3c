"""Shard sets of made-up tokens for `bench data`: in a directory that is kept and used again, or in a passing one."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data.made_up import write_made_up
from kd_megatron.console import logs
from kd_megatron.errors import OutputError
from kd_megatron.files import atomic
from kd_megatron.files.manifest import MANIFEST, read_manifest

BYTES_PER_TOKEN = 2.1  # two of the .bin, and 20 of the .idx for each document of 512 tokens
MIN_TOKENS = 20_000  # then the smaller of the two pools has two shards of one window of 512 at least
SIZES = (10**7, 10**8, 10**9)
_TOKENS_PER_SHARD = 50_000_000
_MIN_SHARDS = 2


@contextlib.contextmanager
def working_directory(kept: Path | None) -> Iterator[Path]:
    """``kept``, made if it is missing, or one that is removed in the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="kd-megatron-bench-") as passing:
        yield Path(passing)


def sizes(num_tokens: int) -> list[int]:
    """The pools that lead up to ``num_tokens``, ten times as large each; at least two."""
    smaller = [size for size in SIZES if size < num_tokens] or [num_tokens // 10]
    return [*smaller, num_tokens]


def pools(directory: Path, sizes: list[int]) -> list[Path]:
    """A shard set of each size in tokens, the ones that ``directory`` has already as they are.

    Raises:
        OutputError: there is too little room for those that are missing.
    """
    paths = [directory / f"made_up_{size}" for size in sizes]
    missing = [(size, path) for size, path in zip(sizes, paths, strict=True) if not _is_there(path, size)]
    require_room(directory, int(BYTES_PER_TOKEN * sum(size for size, _ in missing)))
    for size, path in missing:
        logs.say(f"making up {size:,} tokens in {path}")
        _write(path, size)
    return paths


def require_room(directory: Path, num_bytes: int) -> None:
    """Raise `OutputError` unless the disk of ``directory`` has room for so much more."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise OutputError(
            given=f"{directory} has {free / 1e9:.1f} GB free",
            expected=f"{num_bytes / 1e9:.1f} GB, for made-up shards",
            fix="choose fewer --tokens, or a --directory on a larger disk",
        )


def _is_there(path: Path, size: int) -> bool:
    return (path / MANIFEST).is_file() and read_manifest(path).tokens("train") == size


def _write(path: Path, size: int) -> None:
    """All or nothing."""
    if path.exists():
        raise OutputError(
            given=f"{path} is not a shard set of {size:,} tokens",
            expected="such a set, or nothing",
            fix="choose another --directory, or delete it",
        )
    with atomic.new_directory(path) as aside:
        write_made_up(aside, size, num_shards=max(_MIN_SHARDS, size // _TOKENS_PER_SHARD))
