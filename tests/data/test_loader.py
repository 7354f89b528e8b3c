"""The loader: a pure function of (recipe, seed, sample index), nested pools, epochs, blends, resume."""

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_megatron.data.loader import Loader
from kd_megatron.errors import DataError, RecipeError
from kd_megatron.recipe import DataRecipe
from kd_megatron.tensors import Batch

LENGTH = 32
Streams = dict[str, list[int]]
MakeShardSet = Callable[..., Path]


def recipe(*paths: Path, weights: tuple[float, ...] = (), **options: Any) -> DataRecipe:
    shards = [{"path": str(p), "weight": w} for p, w in zip(paths, weights or [1.0] * len(paths), strict=True)]
    return DataRecipe.model_validate({"shards": shards, "sequence_length": LENGTH} | options)


def same(left: Batch, right: Batch) -> bool:
    pairs = [(getattr(left, f.name), getattr(right, f.name)) for f in fields(Batch) if f.name != "attention_mask"]
    return all(torch.equal(a, b) for a, b in pairs) and left.attention_mask is right.attention_mask is None


def join(batches: list[Batch]) -> Batch:
    parts = {f.name: [getattr(batch, f.name) for batch in batches] for f in fields(Batch)}
    return Batch(**{k: None if v[0] is None else torch.cat(v) for k, v in parts.items()})


def windows_seen(loader: Loader, first: int, num: int) -> list[tuple[int, int]]:
    """(source, window) of each sample."""
    sources, windows = loader.window_numbers(np.arange(first, first + num))
    return list(zip(sources.tolist(), windows.tolist(), strict=True))


def test_a_batch_has_the_promised_shapes(shard_set: Path) -> None:
    loader = Loader(recipe(shard_set), run_seed=0)
    batch = loader.batch(5, 12)
    assert loader.num_masked == round(0.15 * (LENGTH - 2))
    assert batch.input_ids.shape == batch.clean_ids.shape == (12, LENGTH)
    assert batch.masked_positions.shape == batch.labels.shape == (12, loader.num_masked)
    assert batch.sample_ids.tolist() == list(range(5, 17))
    for field in fields(Batch):
        value = getattr(batch, field.name)
        assert value is None if field.name == "attention_mask" else value.dtype == torch.int64
    assert loader.batch(0, 0).input_ids.shape == (0, LENGTH)


def test_an_epoch_holds_every_window_of_the_stream_once(shard_set: Path, streams: Streams) -> None:
    loader = Loader(recipe(shard_set), run_seed=0)
    expected = []
    for name in ("train-00000", "train-00001", "train-00002"):
        stream, size = streams[name], LENGTH - 2
        expected += [[2, *stream[at : at + size], 3] for at in range(0, len(stream) - size + 1, size)]
    assert loader.num_windows == len(expected)
    for epoch in (0, 3):
        clean = loader.batch(epoch * loader.num_windows, loader.num_windows).clean_ids
        assert sorted(clean.tolist()) == sorted(expected)
        assert clean.tolist() != expected


@pytest.mark.parametrize("split", [(1, 8), (2, 4), (4, 2), (8, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("two_sources", [False, True])
def test_any_split_gives_the_same_samples_and_masks(
    shard_set: Path, other_shard_set: Path, split: tuple[int, int], two_sources: bool
) -> None:
    data = recipe(shard_set, other_shard_set, weights=(0.7, 0.3)) if two_sources else recipe(shard_set)
    loader, num_batches, size = Loader(data, run_seed=3), *split
    first = loader.num_windows - 4  # across an epoch's end
    parts = [Loader(data, run_seed=3).batch(first + n * size, size) for n in reversed(range(num_batches))]
    assert same(join(parts[::-1]), loader.batch(first, 8))


def test_a_resumed_loader_goes_on_at_the_consumed_sample(shard_set: Path) -> None:
    uninterrupted = Loader(recipe(shard_set), run_seed=5)
    steps = [uninterrupted.batch(step * 16, 16) for step in range(40)]
    assert same(Loader(recipe(shard_set), run_seed=5).batch(39 * 16, 16), steps[39])
    assert same(uninterrupted.batch(39 * 16, 16), steps[39])


def test_epochs_are_reshuffled_and_masked_anew(shard_set: Path) -> None:
    loader = Loader(recipe(shard_set), run_seed=0)
    num = loader.num_windows
    first, second = windows_seen(loader, 0, num), windows_seen(loader, num, num)
    assert set(first) == set(second)
    moved = np.mean([a != b for a, b in zip(first, second, strict=True)])
    assert moved > 0.95
    one, two = loader.batch(0, num), loader.batch(num, num)
    again = [second.index(window) for window in first]
    assert torch.equal(one.clean_ids, two.clean_ids[again])
    assert (one.masked_positions != two.masked_positions[again]).any(dim=1).float().mean() > 0.95


def test_the_run_seed_changes_order_and_masks_but_not_the_pool(shard_set: Path) -> None:
    data = recipe(shard_set, unique_tokens=100 * LENGTH)
    one, two = Loader(data, run_seed=0), Loader(data, run_seed=1)
    assert set(windows_seen(one, 0, 100)) == set(windows_seen(two, 0, 100))
    assert windows_seen(one, 0, 100) != windows_seen(two, 0, 100)
    assert not torch.equal(one.batch(0, 8).masked_positions, two.batch(0, 8).masked_positions)


def test_pools_are_nested_and_depend_on_the_recipe_seed(shard_set: Path) -> None:
    pools = {}
    for num in (10, 50, 200):
        loader = Loader(recipe(shard_set, unique_tokens=num * LENGTH + 5), run_seed=num)
        assert loader.num_windows == num
        pools[num] = set(windows_seen(loader, 0, num))
        assert len(pools[num]) == num
        assert pools[num] == set(windows_seen(loader, 7 * num, num))
    assert pools[10] < pools[50] < pools[200]
    other = Loader(recipe(shard_set, unique_tokens=50 * LENGTH, seed=99), run_seed=0)
    assert set(windows_seen(other, 0, 50)) != pools[50]


def test_pools_of_a_blend_are_nested_and_split_by_weight(shard_set: Path, other_shard_set: Path) -> None:
    pools = {}
    for num in (10, 40, 100):
        data = recipe(shard_set, other_shard_set, weights=(0.7, 0.3), unique_tokens=num * LENGTH)
        loader = Loader(data, run_seed=num)
        pools[num] = set(windows_seen(loader, 0, num))
        assert len(pools[num]) == num == loader.num_windows
        assert sum(source == 0 for source, _ in pools[num]) == round(0.7 * num)
    assert pools[10] < pools[40] < pools[100]


def test_unique_samples_counts_distinct_windows(shard_set: Path, other_shard_set: Path) -> None:
    data = recipe(shard_set, other_shard_set, weights=(0.25, 0.75), unique_tokens=80 * LENGTH)
    uncapped = recipe(shard_set, other_shard_set, weights=(0.25, 0.75))
    for loader in (Loader(data, run_seed=0), Loader(uncapped, run_seed=0)):
        for consumed in (0, 1, 13, 79, 80, 81, 500, 3000):
            assert loader.unique_samples(consumed) == len(set(windows_seen(loader, 0, consumed)))


def test_each_source_repeats_its_own_epochs(shard_set: Path, other_shard_set: Path) -> None:
    loader = Loader(recipe(shard_set, other_shard_set, weights=(1, 4)), run_seed=0)
    size = len(loader._sources[1].windows)
    small = [window for source, window in windows_seen(loader, 0, 4 * size) if source == 1]
    assert sorted(small[:size]) == sorted(small[size : 2 * size]) == list(range(size))
    assert small[:size] != small[size : 2 * size]


def test_validation_is_the_same_for_every_run_and_holds_every_window_once(shard_set: Path, streams: Streams) -> None:
    one = Loader(recipe(shard_set), run_seed=0, split="valid")
    two = Loader(recipe(shard_set, unique_tokens=10 * LENGTH, seed=8), run_seed=1, split="valid")
    assert same(one.batch(0, 30), two.batch(0, 30))
    stream = streams["valid-00000"]
    assert one.num_windows == len(stream) // (LENGTH - 2)
    _, windows = one.window_numbers(np.arange(one.num_windows))
    assert windows.tolist() != sorted(windows.tolist())
    rows = one.batch(0, one.num_windows).clean_ids[:, 1:-1]
    flat = rows[np.argsort(windows)].reshape(-1)
    assert flat.tolist() == stream[: len(flat)]
    assert torch.equal(one.batch(one.num_windows, 1).clean_ids, one.batch(0, 1).clean_ids)


def test_a_source_without_held_out_documents_is_left_out_of_validation(shard_set: Path, other_shard_set: Path) -> None:
    both = Loader(recipe(other_shard_set, shard_set), run_seed=0, split="valid")
    alone = Loader(recipe(shard_set), run_seed=0, split="valid")
    assert same(both.batch(0, 20), alone.batch(0, 20))
    assert both.content_hash == Loader(recipe(other_shard_set, shard_set), run_seed=4).content_hash
    with pytest.raises(DataError, match="valid split"):
        Loader(recipe(other_shard_set), run_seed=0, split="valid")


def test_the_content_hash_changes_with_what_decides_the_samples(shard_set: Path, other_shard_set: Path) -> None:
    variants = [
        recipe(shard_set),
        recipe(other_shard_set),
        recipe(shard_set, other_shard_set),
        recipe(shard_set, other_shard_set, weights=(1, 2)),
        recipe(shard_set, sequence_length=64),
        recipe(shard_set, seed=1),
        recipe(shard_set, mask_fraction=0.2),
        recipe(shard_set, unique_tokens=1000),
    ]
    hashes = [Loader(variant, run_seed=0).content_hash for variant in variants]
    assert len(set(hashes)) == len(hashes)
    assert Loader(recipe(shard_set), run_seed=9).content_hash == hashes[0]


@pytest.mark.parametrize("num_tokens", [LENGTH - 1, 10**9])
def test_a_pool_larger_than_the_corpus_or_empty_is_an_error(shard_set: Path, num_tokens: int) -> None:
    with pytest.raises(DataError, match=r"unique_tokens") as caught:
        Loader(recipe(shard_set, unique_tokens=num_tokens), run_seed=0)
    assert str(shard_set) in caught.value.given


def test_bad_shard_lists(shard_set: Path, make_shard_set: MakeShardSet, tmp_path: Path) -> None:
    foreign, tiny = make_shard_set("foreign", first_word="v"), make_shard_set("tiny", shards={"train-00000": [[7, 3]]})
    for paths, complaint in {
        (shard_set, foreign): "different tokenizers",
        (shard_set, shard_set): "twice",
        (shard_set, tiny): "no window",
        (tmp_path / "nowhere",): "not a prepared shard set",
        ("s3://bucket/set",): "in object storage, which is not read",
        (Path("msc://profile/set"),): "in object storage, which is not read",
    }.items():
        with pytest.raises(DataError, match=complaint):
            Loader(recipe(*paths), run_seed=0)
    with pytest.raises(RecipeError, match="mask_fraction"):
        Loader(recipe(shard_set, mask_fraction=0.01), run_seed=0)


def test_order_and_pool_are_these_for_ever(shard_set: Path) -> None:
    """Pins the order itself: a change of it changes every run, and must be a decision (loader._ORDER_VERSION)."""
    loader = Loader(recipe(shard_set, unique_tokens=50 * LENGTH), run_seed=42)
    assert [window for _, window in windows_seen(loader, 48, 6)] == PINNED_WINDOWS


PINNED_WINDOWS = [276, 282, 42, 140, 172, 51]


def test_one_large_batch_is_faster_than_single_samples(shard_set: Path) -> None:
    loader = Loader(recipe(shard_set), run_seed=0)

    def seconds(size: int) -> float:
        begin = time.perf_counter()
        for first in range(0, 256, size):
            loader.batch(first, size)
        return time.perf_counter() - begin

    ratio = min(seconds(1) for _ in range(3)) / min(seconds(256) for _ in range(3))
    assert ratio > 8  # about 60 on an idle core; per-sample Python would make it 1
