"""The manifest of a shard set: what each shard holds, so that a torn, altered or foreign file is never read.

A shard set is a directory with ``manifest.json``, ``tokenizer/`` (Hugging Face files) and, for each shard,
``SPLIT-NNNNN.bin`` and ``SPLIT-NNNNN.idx`` in megatron-core's indexed format (docs/data_format.md).
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kd_megatron.errors import DataError, RecipeError
from kd_megatron.files import atomic
from kd_megatron.recipe import config
from kd_megatron.recipe.config import Strict

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (  # in Hugging Face format, the configuration among them
    "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
)  # fmt: skip
_REPAIR_TOKENIZER = "restore the tokenizer's directory from a good copy, or prepare the shard set again"
_MOST_DESCRIPTION_BYTES = 1 << 28  # of a manifest or a tokenizer's file: hundreds of thousands of shards

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=0, lt=2**60)]


class ShardEntry(Strict):
    """One shard as it was written."""

    name: Annotated[str, Field(pattern="^(train|valid)-[0-9]{1,9}$")]  # "train-00000"; a file's name, never a path
    split: Literal["train", "valid"]
    documents: Number
    tokens: Number  # the [SEP] that ends each document included
    bin_bytes: Number
    bin_sha256: Sha256
    idx_sha256: Sha256

    @model_validator(mode="after")
    def _named_after_its_split(self) -> Self:
        if not self.name.startswith(f"{self.split}-"):
            raise ValueError(f"shard {self.name} is listed in the split {self.split}")
        return self


class Manifest(Strict):
    """The whole shard set."""

    format: Literal[1] = 1
    name: str
    dtype: Literal["uint16", "int32"]
    vocab_size: Annotated[int, Field(gt=0, lt=2**31)]
    tokenizer_sha256: Sha256  # of the vocabulary: token -> id, sorted
    tokenizer_files: dict[str, Sha256] = {}  # every file of tokenizer/; absent from older sets
    shards: list[ShardEntry]
    statistics: dict[str, int] = {}  # documents read, and dropped by each filter
    sources: list[dict[str, Any]] = []  # each source with its licence note
    recipe: dict[str, Any] = {}  # the resolved corpus recipe
    checksum: str = ""  # sha256 of all the rest (`_checksum`); absent from older sets

    @model_validator(mode="after")
    def _no_shard_twice(self) -> Self:
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        return self

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
    """The manifest in ``directory``. Raises `DataError` when there is none, or it is malformed or altered."""
    path = Path(directory) / MANIFEST
    if re.match("[a-z0-9]+:/", str(directory)):
        raise DataError(
            given=f"{directory} is in object storage, which is not read",
            expected="a directory of a disk that every node sees: shards are mapped into memory",
            fix="copy the shard set there first (aws s3 sync, msc, rclone), and give that path",
        )
    if not path.is_file():
        raise DataError(
            given=f"{directory} is not a prepared shard set: it has no {MANIFEST}",
            expected="a directory that `./launch.sh prepare RECIPE` wrote",
            fix="prepare it first, or correct the path",
        )
    try:
        require_plausible_size(path)
        raw = json.loads(path.read_text(encoding="utf-8"))
        manifest, found = config.validate(Manifest, raw, where=str(path)), _checksum(raw)
    except (OSError, ValueError, RecursionError, RecipeError) as error:  # ValueError: not JSON, not UTF-8, huge numbers
        raise DataError(given=f"{path} is not a valid manifest: {error}", fix="prepare the shard set again") from error
    if manifest.checksum and manifest.checksum != found:
        raise DataError(
            given=f"{path} was altered: its content has checksum {found[:12]}",
            expected=f"checksum {manifest.checksum[:12]}, as it says itself",
            fix="restore it from a good copy, or delete the shard set and prepare it again",
        )
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest`` with its checksum and those of the tokenizer's files, all or nothing."""
    files = {path.name: file_sha256(path) for path in _tokenizer_files(directory)}
    raw = manifest.model_dump(mode="json") | {"tokenizer_files": files}
    raw["checksum"] = _checksum(raw)
    with atomic.new_file(directory / MANIFEST) as aside:
        aside.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _checksum(raw: dict[str, Any]) -> str:
    """sha256 of a manifest as JSON, keys sorted, without white space and without the checksum itself."""
    rest = {key: value for key, value in raw.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_tokenizer_files(directory: Path | str, manifest: Manifest) -> None:
    """Raise `DataError` unless ``tokenizer/`` holds the very files that the manifest lists (if it lists any).

    The vocabulary alone does not say which tokens are special: other roles would mean other masks.
    """
    if not manifest.tokenizer_files:
        return
    try:
        files = _tokenizer_files(Path(directory))
        for path in files:
            require_plausible_size(path)
        found = {path.name: file_sha256(path) for path in files}
    except OSError as error:
        raise DataError(f"{Path(directory) / TOKENIZER} cannot be read: {error}", fix=_REPAIR_TOKENIZER) from error
    wanted = manifest.tokenizer_files
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            what = "is missing" if name not in found else "was altered" if name in wanted else "was added"
            raise DataError(
                given=f"{Path(directory) / TOKENIZER / name} {what}",
                expected="the tokenizer's files as the manifest lists them",
                fix=_REPAIR_TOKENIZER,
            )


def require_plausible_size(path: Path, most: int = _MOST_DESCRIPTION_BYTES) -> None:
    """Raise `DataError` when a file that is read whole has grown beyond ``most`` bytes, before memory is filled."""
    if (size := path.stat().st_size) > most:
        raise DataError(f"{path} has {size:,} bytes", f"at most {most:,}", "restore it from a good copy")


def most_index_bytes(entry: ShardEntry) -> int:
    """What a ``.idx`` can have at most: its header, and a row for each document and for each sequence of a token."""
    return 34 + 12 * max(entry.tokens, entry.documents) + 8 * (entry.documents + 1)


def _tokenizer_files(directory: Path) -> list[Path]:
    """The files of a set's tokenizer, hidden ones left out."""
    return [path for path in sorted((directory / TOKENIZER).iterdir()) if path.name[0] != "." and path.is_file()]


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


def model_hash(directory: Path) -> str:
    """A short hash of what a model's scores depend on: configuration, weights and tokenizer."""
    patterns = (*TOKENIZER_FILES, "*.safetensors")
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    digests = [f"{file.name}:{file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
