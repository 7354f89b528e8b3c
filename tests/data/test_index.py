"""Shards: what megatron-core wrote is what is read, and nothing damaged is ever read."""

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import verify
from kd_megatron.data import index
from kd_megatron.data.shards import open_shard_set
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import MANIFEST, TOKENIZER, Manifest, file_sha256, write_manifest

Streams = dict[str, list[int]]
MakeShardSet = Callable[..., Path]


def test_lengths_and_tokens_are_those_of_megatron_core(shard_set: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    for shard in open_shard_set(shard_set, "train").shards:
        reference = IndexedDataset(str(shard_set / shard.entry.name))
        assert np.array_equal(shard.lengths, reference.sequence_lengths)
        assert np.array_equal(shard.tokens, np.concatenate([reference[i].copy() for i in range(len(reference))]))


@pytest.mark.parametrize("length", [6, 7, 30, 126, 500])
def test_windows_are_the_flat_token_stream(shard_set: Path, streams: Streams, length: int) -> None:
    for shard in open_shard_set(shard_set, "train").shards:
        stream = streams[shard.entry.name]
        starts = shard.window_starts(length)
        assert len(starts) == len(stream) // length
        assert np.array_equal(shard.gather(starts, length).ravel(), stream[: len(starts) * length])


def test_windows_need_a_full_length_of_tokens(make_shard_set: MakeShardSet) -> None:
    exact, short, empty = [[5, 6], [7, 3]], [[5, 6, 3]], []
    shards = {f"train-{number:05d}": documents for number, documents in enumerate((exact, short, empty))}
    opened = open_shard_set(make_shard_set(shards=shards), "train").shards
    assert [len(shard.window_starts(4)) for shard in opened] == [1, 0, 0]


def test_arrays_outlive_the_shard_set(shard_set: Path, streams: Streams) -> None:
    tokens = open_shard_set(shard_set, "train").shards[0].tokens
    assert tokens.tolist() == streams["train-00000"]


def flip_a_bit_of_bin(directory: Path) -> str:
    return flip(directory / "train-00000.bin", 101)


def flip(path: Path, offset: int) -> str:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    return path.name


def truncate_bin(directory: Path) -> str:
    path = directory / "train-00000.bin"
    os.truncate(path, path.stat().st_size - 100)
    return path.name


def truncate_idx(directory: Path) -> str:
    path = directory / "train-00000.idx"
    os.truncate(path, 20)
    return path.name


def flip_a_pointer_of_idx(directory: Path) -> str:
    return flip(directory / "train-00000.idx", 34 + 4 * 40 + 8 * 20)


def take_the_idx_of_another_shard(directory: Path) -> str:
    (directory / "train-00000.idx").write_bytes((directory / "train-00001.idx").read_bytes())
    return "train-00000.idx"


def take_both_files_of_another_shard(directory: Path) -> str:
    for suffix in ("bin", "idx"):
        (directory / f"train-00000.{suffix}").write_bytes((directory / f"train-00001.{suffix}").read_bytes())
    return "train-00000"


def lose_bin(directory: Path) -> str:
    (directory / "train-00000.bin").unlink()
    return "train-00000.bin"


def lose_idx(directory: Path) -> str:
    (directory / "train-00000.idx").unlink()
    return "train-00000.idx"


def lose_manifest(directory: Path) -> str:
    (directory / MANIFEST).unlink()
    return MANIFEST


def tear_manifest(directory: Path) -> str:
    os.truncate(directory / MANIFEST, 50)
    return MANIFEST


def lose_tokenizer(directory: Path) -> str:
    (directory / TOKENIZER / "tokenizer.json").unlink()
    return "tokenizer.json"


def tear_tokenizer(directory: Path) -> str:
    path = directory / TOKENIZER / "tokenizer.json"
    path.write_text('{"model": {}}')
    return path.name


def unseal(directory: Path) -> None:
    """Make it a set of before checksums of the manifest and of the tokenizer's files."""
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["checksum"], manifest["tokenizer_files"]
    (directory / MANIFEST).write_text(json.dumps(manifest))


def swap_tokenizer(directory: Path) -> str:
    unseal(directory)
    path = directory / TOKENIZER / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"x7"'))
    return "not the one its shards were made with"


def swap_special_tokens(directory: Path) -> str:
    path = directory / TOKENIZER / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"[CLS]"', '"[X]"').replace('"[SEP]"', '"[CLS]"').replace("[X]", "[SEP]"))
    return path.name


def add_a_tokenizer_file(directory: Path) -> str:
    (directory / TOKENIZER / "special_tokens_map.json").write_text("{}")
    return "special_tokens_map.json"


def edit_manifest(directory: Path) -> str:
    """Another order of shards would be another order of samples."""
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["shards"].reverse()
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return MANIFEST


def lose_mask_token(directory: Path) -> str:
    unseal(directory)
    path = directory / TOKENIZER / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": None}))
    return "mask_token"


@pytest.mark.parametrize("was_verified", [False, True], ids=["unverified", "changed after verification"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit_of_bin,
        truncate_bin,
        truncate_idx,
        flip_a_pointer_of_idx,
        take_the_idx_of_another_shard,
        take_both_files_of_another_shard,
        lose_bin,
        lose_idx,
        lose_manifest,
        tear_manifest,
        lose_tokenizer,
        tear_tokenizer,
        swap_tokenizer,
        swap_special_tokens,
        add_a_tokenizer_file,
        edit_manifest,
        lose_mask_token,
    ],
)
def test_damage_is_an_error_that_names_the_file(
    make_shard_set: MakeShardSet,
    damage: Callable[[Path], str],
    was_verified: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "SETTLED_SECONDS", -1.0)
    directory = make_shard_set(shards={"train-00000": [[7] * 20] * 40, "train-00001": [[9] * 20] * 39})
    if was_verified:
        open_shard_set(directory, "train")
        assert (directory / index.MEMORY).is_file()
    named = damage(directory)
    with pytest.raises(DataError) as caught:
        open_shard_set(directory, "train")
    assert named in caught.value.given
    assert caught.value.fix


def vouch_for(directory: Path, **changes: object) -> None:
    """Make the manifest agree with the files as they are now: a faulty writer rather than later damage."""
    manifest = json.loads((directory / MANIFEST).read_text())
    entry = manifest["shards"][0]
    entry["bin_sha256"] = file_sha256(directory / "train-00000.bin")
    entry["idx_sha256"] = file_sha256(directory / "train-00000.idx")
    entry |= changes
    write_manifest(directory, Manifest.model_validate(manifest))


LENGTHS = 34  # where the lengths of a .idx begin
POINTERS = LENGTHS + 4 * 40
BOUNDARIES = POINTERS + 8 * 40


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (0, b"X", "the header: b'XMIDIDX"),
        (9, struct.pack("<Q", 2), "version"),
        (17, bytes([4]), "the dtype code: 4"),
        (17, bytes([99]), "the dtype code: 99"),
        (18, struct.pack("<Q", 1 << 60), "bytes"),
        (26, struct.pack("<Q", 1 << 60), "bytes"),
        (LENGTHS, struct.pack("<i", 19), "the pointers"),
        (LENGTHS, struct.pack("<ii", -1, 41), "a length: -1"),
        (POINTERS + 8, struct.pack("<q", 42), "the pointers"),
        (BOUNDARIES + 8 * 40, struct.pack("<q", 39), "the document bounds"),
        (BOUNDARIES + 8, struct.pack("<q", 7), "the document bounds"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused_even_when_its_checksum_is_right(
    make_shard_set: MakeShardSet, offset: int, value: bytes, complaint: str
) -> None:
    directory = make_shard_set(shards={"train-00000": [[7] * 20] * 40})
    path = directory / "train-00000.idx"
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    vouch_for(directory)
    with pytest.raises(DataError, match=complaint):
        open_shard_set(directory, "train")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"tokens": 799}, "tokens: 800"), ({"documents": 39}, "documents: 40"), ({"bin_bytes": 1598}, "bytes: 1600")],
)
def test_a_manifest_with_other_counts_is_refused(
    make_shard_set: MakeShardSet, changes: dict[str, object], complaint: str
) -> None:
    directory = make_shard_set(shards={"train-00000": [[7] * 20] * 40})
    vouch_for(directory, **changes)
    with pytest.raises(DataError, match=complaint):
        open_shard_set(directory, "train")


def test_ids_beyond_the_vocabulary_are_refused(make_shard_set: MakeShardSet) -> None:
    with pytest.raises(DataError, match=r"an id: 3 \.\.\. 300"):
        open_shard_set(make_shard_set(shards={"train-00000": [[7, 300, 3]]}), "train")


def test_a_verified_file_is_read_in_full_once_only(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(verify, "file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    monkeypatch.setattr(index, "SETTLED_SECONDS", -1.0)
    directory = make_shard_set()
    for _ in range(2):
        open_shard_set(directory, "train")
    assert read == ["train-00000.idx", "train-00000.bin"]


def test_a_file_written_a_moment_ago_is_not_remembered(make_shard_set: MakeShardSet) -> None:
    directory = make_shard_set()
    open_shard_set(directory, "train")
    assert not (directory / index.MEMORY).exists()


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"train-00000.bin": 5}', "\0"])
def test_a_torn_memory_of_verified_files_is_ignored(make_shard_set: MakeShardSet, content: str) -> None:
    directory = make_shard_set()
    (directory / index.MEMORY).write_text(content)
    assert len(open_shard_set(directory, "train").shards) == 1


def test_a_directory_that_cannot_be_written_is_read_all_the_same(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    directory = make_shard_set()
    monkeypatch.setattr(index, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(index.atomic.os, "replace", refuse)
    assert len(open_shard_set(directory, "train").shards) == 1
    assert not (directory / index.MEMORY).exists()
