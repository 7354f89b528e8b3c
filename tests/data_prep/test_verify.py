"""Every torn, altered or foreign file of a shard set is found and named."""

import json
import shutil
import struct

import numpy as np
import pytest
from harbour_book import english_document, write_jsonl

from benchmarks.data.shard_index import read_index
from data_prep.prepare import prepare
from data_prep.verify import verify
from data_prep.write import token_dtype
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import Manifest, file_sha256, read_manifest, write_manifest


@pytest.fixture
def shards(tmp_path, make_recipe):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [english_document(index) for index in range(60)])
    return prepare(make_recipe(corpus))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def append(path):
    path.write_bytes(path.read_bytes() + b"\0\0")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def set_largest_id(path):
    tokens = np.fromfile(path, np.uint16)
    tokens[3] = 65_535
    tokens.tofile(path)


def shift_pointers(path):
    """Pointers two bytes on, lengths untouched: megatron-core would read every document askew."""
    content = bytearray(path.read_bytes())
    index = read_index(path)
    first = 34 + 4 * len(index.lengths)
    shifted = (index.pointers + 2).astype(np.int64).tobytes()
    content[first : first + len(shifted)] = shifted
    path.write_bytes(content)


def swap_lengths(path):
    """Two lengths exchanged, pointers made to agree: same size, same sums, other documents."""
    content = bytearray(path.read_bytes())
    index = read_index(path)
    lengths = index.lengths.copy()
    other = int(np.flatnonzero(lengths != lengths[0])[0])
    lengths[[0, other]] = lengths[[other, 0]]
    pointers = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)[:-1] * 2))
    content[34 : 34 + 12 * len(lengths)] = lengths.tobytes() + pointers.astype(np.int64).tobytes()
    path.write_bytes(content)


def wrong_version(path):
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 9, 2)
    path.write_bytes(content)


def another_shards(path):
    shutil.copy(path.with_name("train-00001" + path.suffix), path)


def remove(path):
    path.unlink()


DAMAGES = [
    *[("train-00000.bin", damage) for damage in (truncate, append, flip_a_bit, set_largest_id, another_shards, remove)],
    *[("train-00000.idx", damage) for damage in (truncate, append, flip_a_bit, shift_pointers, swap_lengths)],
    *[("train-00000.idx", damage) for damage in (wrong_version, another_shards, remove)],
    *[("tokenizer/tokenizer.json", damage) for damage in (truncate, remove)],
]
SEEN_ONLY_IN_FULL = (flip_a_bit, set_largest_id, swap_lengths)


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{d.__name__}-{n}" for n, d in DAMAGES])
def test_damage_is_found_and_named(shards, name, damage):
    verify(shards)
    damage(shards / name)
    with pytest.raises(DataError) as caught:
        verify(shards)
    assert str(shards / name) in str(caught.value)


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{d.__name__}-{n}" for n, d in DAMAGES])
def test_the_quick_check_finds_what_sizes_and_structure_show(shards, name, damage):
    damage(shards / name)
    if damage in SEEN_ONLY_IN_FULL:
        return
    with pytest.raises(DataError):
        verify(shards, full=False)


@pytest.mark.parametrize("damage", [shift_pointers, swap_lengths, another_shards])
def test_a_wrong_index_is_found_even_when_its_checksum_is_forged(shards, damage):
    """Structure is checked on its own; exchanged lengths are the one thing only the checksum knows."""
    path = shards / "train-00000.idx"
    damage(path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0]["idx_sha256"] = file_sha256(path)
    write_manifest(shards, Manifest.model_validate(manifest))
    if damage is swap_lengths:
        verify(shards)
    else:
        with pytest.raises(DataError, match=r"train-00000\.idx"):
            verify(shards)


def test_an_id_outside_the_vocabulary_is_found_even_when_its_checksum_is_forged(shards):
    path = shards / "train-00000.bin"
    set_largest_id(path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0]["bin_sha256"] = file_sha256(path)
    write_manifest(shards, Manifest.model_validate(manifest))
    with pytest.raises(DataError, match=r"an id: .* 65535"):
        verify(shards)


def test_another_tokenizer_is_found(shards):
    path = shards / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match=r"tokenizer\.json was altered"):
        verify(shards)
    write_manifest(shards, read_manifest(shards))  # which then vouches for the file, not for its vocabulary
    with pytest.raises(DataError, match="vocabulary's hash"):
        verify(shards)


@pytest.mark.parametrize(
    ("key", "value"),
    [("documents", 1), ("tokens", 7), ("bin_bytes", 10), ("bin_sha256", "0" * 64), ("idx_sha256", "0" * 64)],
)
def test_a_manifest_that_says_otherwise_is_found(shards, key, value):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][1][key] = value
    write_manifest(shards, Manifest.model_validate(manifest))
    with pytest.raises(DataError, match="train-00001"):
        verify(shards)


def test_a_directory_without_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match="is not a prepared shard set"):
        verify(tmp_path)


def test_megatron_reads_what_was_written(shards):
    """The library's own reader agrees with ours on every document."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(shards / "train-00000"))
    tokens = np.fromfile(shards / "train-00000.bin", np.uint16)
    index = read_index(shards / "train-00000.idx")
    assert len(dataset) == len(index.lengths)
    for number, (pointer, length) in enumerate(zip(index.pointers, index.lengths, strict=True)):
        assert np.array_equal(dataset[number], tokens[pointer // 2 : pointer // 2 + length])


def test_ids_are_as_wide_as_the_vocabulary_needs():
    assert token_dtype(65_500) == "uint16"
    assert token_dtype(65_501) == "int32"
