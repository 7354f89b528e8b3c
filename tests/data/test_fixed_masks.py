"""`data.mask_seed`: one mask for each window; and where a window stands in the pool, for what is kept of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_megatron.data.loader import Loader
from kd_megatron.recipe import DataRecipe

LENGTH = 32


def recipe(*shard_sets: Path, weights: tuple[float, ...] = (), **settings) -> DataRecipe:
    shards = [{"path": str(path), "weight": weight} for path, weight in zip(shard_sets, weights or (1.0,), strict=True)]
    return DataRecipe.model_validate({"shards": shards, "sequence_length": LENGTH, "mask_seed": 7, **settings})


def masks_by_window(loader: Loader, first: int, count: int) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """(source, window) -> its masked ids and positions; a window met twice must look the same."""
    batch = loader.batch(first, count)
    numbers, windows = loader.window_numbers(batch.sample_ids.numpy())
    seen: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for row, key in enumerate(zip(numbers.tolist(), windows.tolist(), strict=True)):
        mask = (batch.input_ids[row].numpy().tobytes(), batch.masked_positions[row].numpy().tobytes())
        assert seen.setdefault(key, mask) == mask
    return seen


def test_a_window_keeps_its_mask_in_all_epochs_runs_and_pools(shard_set: Path) -> None:
    one = Loader(recipe(shard_set), run_seed=0)
    num = one.num_windows
    first = masks_by_window(one, 0, num)
    assert masks_by_window(one, 3 * num, num) == first
    assert masks_by_window(Loader(recipe(shard_set), run_seed=5), 0, num) == first
    small = masks_by_window(Loader(recipe(shard_set, unique_tokens=20 * LENGTH), run_seed=1), 0, 40)
    assert len(small) == 20
    assert small.items() <= first.items()


def test_another_mask_seed_gives_other_masks_and_none_gives_the_runs_own(shard_set: Path) -> None:
    batches = {seed: Loader(recipe(shard_set, mask_seed=seed), run_seed=0).batch(0, 32) for seed in (7, 8, None)}
    positions = [batch.masked_positions for batch in batches.values()]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (positions[one] != positions[two]).any(dim=1).float().mean() > 0.9
    assert all(torch.equal(batch.clean_ids, batches[7].clean_ids) for batch in batches.values())


def test_windows_of_one_number_in_two_sources_have_masks_of_their_own(shard_set: Path, other_shard_set: Path) -> None:
    loader = Loader(recipe(shard_set, other_shard_set, weights=(0.5, 0.5)), run_seed=0)
    seen = masks_by_window(loader, 0, loader.num_windows)
    shared = [window for source, window in seen if source == 0 and (1, window) in seen]
    assert len(shared) > 20
    assert sum(seen[0, window][1] != seen[1, window][1] for window in shared) > 0.9 * len(shared)


def test_held_out_masks_stay(shard_set: Path) -> None:
    fixed, free = (Loader(recipe(shard_set, mask_seed=seed), 0, split="valid").batch(0, 20) for seed in (7, None))
    assert torch.equal(fixed.input_ids, free.input_ids)


def test_the_content_hash_tells_mask_seeds_apart(shard_set: Path) -> None:
    hashes = {seed: Loader(recipe(shard_set, mask_seed=seed), 0).content_hash for seed in (None, 7, 8)}
    assert len(set(hashes.values())) == 3


Weighted = Callable[..., DataRecipe]


@pytest.fixture(params=[(1.0,), (0.5, 0.5), (0.9, 0.1), (0.3, 0.7)], ids=str)
def weighted(request, shard_set: Path, other_shard_set: Path) -> Weighted:
    sets = (shard_set, other_shard_set)[: len(request.param)]
    return lambda **settings: recipe(*sets, weights=request.param, **settings)


def rows_by_window(loader: Loader, first: int, count: int) -> dict[tuple[int, int], int]:
    samples = np.arange(first, first + count)
    numbers, windows = loader.window_numbers(samples)
    rows: dict[tuple[int, int], int] = {}
    for number, window, row in zip(numbers.tolist(), windows.tolist(), loader.pool_rows(samples).tolist(), strict=True):
        assert rows.setdefault((number, window), row) == row
    return rows


def test_rows_are_dense_and_the_same_in_every_epoch_and_run(weighted: Weighted) -> None:
    loader = Loader(weighted(), run_seed=0)
    many = 12 * loader.num_windows  # enough for the source with the smallest share to be read whole
    rows = rows_by_window(loader, 0, many)
    assert sorted(rows.values()) == list(range(loader.num_windows))
    assert rows_by_window(Loader(weighted(), run_seed=9), 0, many) == rows


def test_nested_pools_share_rows(weighted: Weighted) -> None:
    whole = rows_by_window(Loader(weighted(), run_seed=0), 0, 2000)
    for num in (10, 40, 100):
        loader = Loader(weighted(unique_tokens=num * LENGTH), run_seed=num)
        rows = rows_by_window(loader, 0, 5 * num)
        assert sorted(rows.values()) == list(range(num))
        assert rows.items() <= whole.items()


def test_first_visits_are_those_of_windows_not_seen_before(weighted: Weighted) -> None:
    for settings in ({}, {"unique_tokens": 30 * LENGTH}):
        loader = Loader(weighted(**settings), run_seed=2)
        samples = np.arange(3 * loader.num_windows)
        seen: set[tuple[int, int]] = set()
        for key, first in zip(
            zip(*(part.tolist() for part in loader.window_numbers(samples)), strict=True),
            loader.first_visits(samples).tolist(),
            strict=True,
        ):
            assert first == (key not in seen)
            seen.add(key)
        assert loader.first_visits(samples[:50]).sum() == loader.unique_samples(50)
