"""A prepared shard set: manifest, tokenizer and checked shards of one split (docs/data_format.md)."""

from dataclasses import dataclass
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.data.index import Shard, open_shard
from kd_megatron.data.special_tokens import SpecialTokens, read_special_tokens
from kd_megatron.data.verified import VerifiedFiles
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
