"""The manifest of a shard set: what each shard holds, so that a torn, altered or foreign file is never read.

A shard set is a directory with ``manifest.json``, ``tokenizer/`` (Hugging Face files) and, for each shard,
``SPLIT-NNNNN.bin`` and ``SPLIT-NNNNN.idx`` in megatron-core's indexed format (docs/data_format.md).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from kd_megatron import config
from kd_megatron.config import Strict
from kd_megatron.errors import DataError, RecipeError
from kd_megatron.paths import PathPart

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"


class ShardEntry(Strict):
    """One shard as it was written."""

    name: PathPart  # "train-00000"
    split: Literal["train", "valid"]
    documents: int
    tokens: int  # the [SEP] that ends each document included
    bin_bytes: int
    bin_sha256: str
    idx_sha256: str


class Manifest(Strict):
    """The whole shard set."""

    format: Literal[1] = 1
    name: str
    dtype: Literal["uint16", "int32"]
    vocab_size: int
    tokenizer_sha256: str  # of the vocabulary: token -> id, sorted
    shards: list[ShardEntry]
    statistics: dict[str, int] = {}  # documents read, and dropped by each filter
    sources: list[dict[str, Any]] = []  # each source with its licence note
    recipe: dict[str, Any] = {}  # the resolved corpus recipe

    def split(self, split: str) -> list[ShardEntry]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def tokens(self, split: str) -> int:
        """How many tokens a split has."""
        return sum(shard.tokens for shard in self.split(split))

    def content_hash(self) -> str:
        """A short hash of everything a reader can see: shards in order and tokenizer."""
        seen = [self.tokenizer_sha256, *(f"{s.name}:{s.bin_sha256}:{s.idx_sha256}" for s in self.shards)]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def read_manifest(directory: Path | str) -> Manifest:
    """The manifest in ``directory``. Raises `DataError` when there is none or it is malformed."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise DataError(
            given=f"{directory} is not a prepared shard set: it has no {MANIFEST}",
            expected="a directory that `./launch.sh prepare RECIPE` wrote",
            fix="prepare it first, or correct the path",
        )
    try:
        return config.validate(Manifest, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecipeError) as error:
        raise DataError(given=f"{path} is not a valid manifest: {error}", fix="prepare the shard set again") from error


def vocabulary_hash(vocabulary: dict[str, int]) -> str:
    """sha256 of a tokenizer's vocabulary: two tokenizers agree on every id exactly when their hashes agree."""
    lines = (f"{index}\t{token}" for token, index in sorted(vocabulary.items(), key=lambda item: item[1]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_hash(path: str | None) -> str | None:
    """A short sha256 of a local model's weights; a hub id stands for itself."""
    if path is None:
        return None
    files = sorted(Path(path).glob("*.safetensors"))
    return "+".join(file_sha256(file)[:16] for file in files) or path


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
