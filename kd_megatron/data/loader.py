"""The loader: any stretch of a run's data order, as a pure function of (recipe, run seed, sample index).

Its only state would be the number of consumed samples, and the caller holds that: a resumed run asks for the next
sample and goes on, every rank and every micro-batch split sees the same samples with the same masks.

How sample j of the training data comes about:

1. `order.Blend` says which source (shard set) j belongs to and that it is that source's k-th sample.
2. The source's pool is the first n windows of ONE permutation of all its windows, fixed by the recipe's ``seed``:
   pools capped by ``unique_tokens`` are nested. Epoch e = k // n goes through the pool in an order of its own, a
   permutation keyed by (run seed, e).
3. `masking.Masker` masks the window by a hash of (run seed, j, position); with the recipe's ``mask_seed`` by one of
   (mask seed, source, window, position) instead, so that a window looks the same in all epochs and all runs.

Validation is the same for every run: the held-out split in one shuffled order, masked with a seed of its own.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kd_megatron.data import counter_hash, masking
from kd_megatron.data.dataset import WindowDataset
from kd_megatron.data.order import Blend, Index, permute
from kd_megatron.data.pools import pool_sizes
from kd_megatron.data.shards import ShardSet, open_shard_set
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import read_manifest
from kd_megatron.recipe import DataRecipe, ShardsRecipe, diff
from kd_megatron.tensors import Batch

_VALIDATION_SEED = 20_240_430  # of the validation order and masks; never the run's
_ORDER_VERSION = 1  # raise it when the same recipe and seed give other batches than before
_POOL, _EPOCH = 1, 2  # purposes of permutation keys
_WINDOW_BITS = 40  # of a fixed mask's counter; the source's number stands above them


@dataclass(frozen=True)
class _Source:
    """One shard set as the loader reads it."""

    number: int  # place in the recipe; keys its permutations
    weight: float
    shard_set: ShardSet
    windows: WindowDataset


class Loader:
    """Batches of masked windows.

    Args:
        recipe: the ``data`` section of a study.
        run_seed: of the order within epochs, and of the masks unless the recipe has a ``mask_seed``.
        split: ``"train"``, or ``"valid"`` for the held-out documents.

    Raises:
        DataError: a shard set is missing, altered or empty, two have different tokenizers, or the pool is smaller than
            ``unique_tokens`` asks for.
    """

    def __init__(self, recipe: DataRecipe, run_seed: int, split: Literal["train", "valid"] = "train") -> None:
        self._run_seed, self._split, self._pool_seed = run_seed, split, recipe.seed
        self._sources = _open_sources(recipe, split)
        self._blend = Blend([source.weight for source in self._sources])
        available = [len(source.windows) for source in self._sources]
        self._pools = pool_sizes(recipe, available) if split == "train" else available
        first = self._sources[0].shard_set
        self.sequence_length = recipe.sequence_length
        self.special = first.special
        self.tokenizer_path = first.tokenizer_path
        self.tokenizer_sha256 = first.manifest.tokenizer_sha256
        self.vocab_size = first.manifest.vocab_size
        self.num_masked = masking.num_masked(recipe.mask_fraction, recipe.sequence_length)
        self.num_windows = sum(self._pools)
        self.content_hash = _content_hash(recipe)
        self._masker = masking.Masker.of(self.special, self.vocab_size)
        self._fixed_masks = split == "train" and recipe.mask_seed is not None
        train_seed = run_seed if recipe.mask_seed is None else recipe.mask_seed
        self._mask_seed = train_seed if split == "train" else _VALIDATION_SEED
        self.window_identity = _window_identity(recipe, self.num_masked)

    def batch(self, first_sample: int, num_samples: int) -> Batch:
        """Samples ``first_sample`` .. ``first_sample + num_samples - 1`` of the data order, on the CPU.

        Any ``first_sample`` >= 0 will do: epochs repeat the pool, reshuffled and, without a ``mask_seed``, masked anew.
        """
        samples = np.arange(first_sample, first_sample + num_samples, dtype=np.int64)
        numbers, windows = self.window_numbers(samples)
        clean_ids = self._gather(numbers, windows)
        mask_ids = numbers << _WINDOW_BITS | windows if self._fixed_masks else samples
        masked = self._masker.mask(clean_ids, mask_ids, self.num_masked, self._mask_seed)
        return Batch(
            input_ids=torch.from_numpy(masked.input_ids),
            clean_ids=torch.from_numpy(clean_ids),
            attention_mask=None,
            masked_positions=torch.from_numpy(masked.positions),
            labels=torch.from_numpy(masked.labels),
            sample_ids=torch.from_numpy(samples),
        )

    def window_numbers(self, samples: Index) -> tuple[Index, Index]:
        """For each sample ([B]) its source and the window of that source, in natural order."""
        numbers, local = self._blend.locate(samples)
        windows = np.empty_like(local)
        for number in np.unique(numbers):
            rows = numbers == number
            windows[rows] = self._windows_of(int(number), local[rows])
        return numbers, windows

    def unique_samples(self, consumed: int) -> int:
        """How many distinct windows the first ``consumed`` samples hold."""
        return sum(min(count, pool) for count, pool in zip(self._blend.counts(consumed), self._pools, strict=True))

    def pool_rows(self, samples: Index) -> Index:
        """For each sample ([B]) its window's place in the pool of all sources, 0 .. num_windows - 1.

        It does not depend on the run's seed, and in a larger pool (``unique_tokens``) a window keeps its place: the
        pool is numbered in the order in which the blend would deal it out once.
        """
        numbers, local = self._blend.locate(samples)
        dealt = np.empty_like(local)
        for number in np.unique(numbers):
            at = numbers == number
            dealt[at] = self._blend.sample_of(int(number), self._pool_places(int(number), local[at]))
        return np.minimum(self._blend.counts_of(dealt), np.array(self._pools)[:, None]).sum(0)

    def first_visits(self, samples: Index) -> NDArray[np.bool_]:
        """For each sample ([B]) whether the run meets its window for the first time: it is of its source's epoch 0."""
        numbers, local = self._blend.locate(samples)
        return local < np.array(self._pools)[numbers]

    def _gather(self, numbers: Index, windows: Index) -> Index:
        """[B, L] unmasked windows, by source and window."""
        if len(self._sources) == 1:
            return self._sources[0].windows.gather(windows)
        clean_ids = np.empty((len(windows), self.sequence_length), np.int64)
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            clean_ids[rows] = self._sources[number].windows.gather(windows[rows])
        return clean_ids

    def _windows_of(self, number: int, local: Index) -> Index:
        """The windows of one source at places ``local`` of its own order."""
        source, pool = self._sources[number], self._pools[number]
        if self._split == "valid":
            return permute(local % pool, pool, counter_hash.key(_VALIDATION_SEED, _POOL))
        pool_key = counter_hash.key(self._pool_seed, _POOL, source.number)
        return permute(self._pool_places(number, local), len(source.windows), pool_key)

    def _pool_places(self, number: int, local: Index) -> Index:
        """The places in one source's pool that its samples ``local`` read: each epoch has an order of its own."""
        pool = self._pools[number]
        epochs, places = np.divmod(local, pool)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            epoch_key = counter_hash.key(self._run_seed, _EPOCH, self._sources[number].number, int(epoch))
            places[rows] = permute(places[rows], pool, epoch_key)
        return places


def _open_sources(recipe: DataRecipe, split: str) -> list[_Source]:
    """The shard sets that have windows of this split. A set without held-out documents is left out of validation."""
    paths = [shards.path for shards in recipe.shards]
    if len(set(paths)) < len(paths):
        raise DataError(f"data.shards names a path twice: {paths}", "different shard sets", "add up their weights")
    opened = [_open_source(number, shards, recipe, split) for number, shards in enumerate(recipe.shards)]
    _require_one_tokenizer([source.shard_set for source in opened])
    usable = [source for source in opened if len(source.windows)]
    if not usable or (split == "train" and len(usable) < len(opened)):
        empty = next(source.shard_set.path for source in opened if not len(source.windows))
        raise DataError(
            given=f"{empty} holds no window of {recipe.sequence_length} tokens in its {split} split",
            expected=f"at least {recipe.sequence_length - 2} tokens in one shard of that split",
            fix="prepare a larger corpus"
            + (", or raise valid_fraction in its recipe" if split == "valid" else ", or shorten data.sequence_length"),
        )
    return usable


def _open_source(number: int, shards: ShardsRecipe, recipe: DataRecipe, split: str) -> _Source:
    shard_set = open_shard_set(shards.path, split)
    return _Source(number, shards.weight, shard_set, WindowDataset(shard_set, recipe.sequence_length))


def _require_one_tokenizer(shard_sets: list[ShardSet]) -> None:
    first = shard_sets[0]
    for other in shard_sets[1:]:
        if other.manifest.tokenizer_sha256 != first.manifest.tokenizer_sha256 or other.special != first.special:
            raise DataError(
                given=f"{first.path} and {other.path} were made with different tokenizers",
                expected="one vocabulary and one set of special tokens for all of data.shards",
                fix="prepare them with the same tokenizer (tokenizer.load in the corpus recipe)",
            )


def _content_hash(recipe: DataRecipe) -> str:
    """A short hash of all that decides the samples, but for the run's seed and where the files lie."""
    left_out = diff.left_out(DataRecipe, "samples") | ({"mask_seed": True} if recipe.mask_seed is None else {})
    settings = recipe.model_dump(mode="json", exclude=left_out)
    sets = [(read_manifest(shards.path).content_hash(), shards.weight) for shards in recipe.shards]
    described = json.dumps([_ORDER_VERSION, settings, sets], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _window_identity(recipe: DataRecipe, num_masked: int) -> dict[str, Any]:
    """What decides the window at a place of the pool and its fixed mask; the run's seed and the pool's size do not."""
    return {
        "data": [f"{read_manifest(shards.path).content_hash()} x {shards.weight:g}" for shards in recipe.shards],
        "data.seed": recipe.seed,
        "sequence_length": recipe.sequence_length,
        "masked_positions": num_masked,
        "mask_seed": recipe.mask_seed,
        "order_version": _ORDER_VERSION,
    }
