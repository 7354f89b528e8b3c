"""Reading measured: windows gathered, masked, both, and opening a shard set, for pools from small to large.

All on one thread. Every call goes on in the data order where the one before it ended: batches are never repeated.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers

from benchmarks.data.in_turn import TurnTaker
from benchmarks.data.megatron_way import MaskedSamples
from kd_megatron.data.index import MEMORY, SETTLED_SECONDS
from kd_megatron.data.loader import Loader
from kd_megatron.data.masking import Masker
from kd_megatron.data.shards import WindowDataset, open_shard_set
from kd_megatron.files.manifest import read_manifest
from kd_megatron.recipe import DataRecipe, ShardsRecipe

LENGTHS = (128, 512)
TOKENS_PER_BATCH = 1 << 15
BATCHES_PER_ROUND = 16
FIRST, VERIFIED, COLD = "first", "verified", "from disk"
MEGATRON, OURS = "megatron-core", "ours"
RUN_SEED = 0


def pool_name(path: Path) -> str:
    """The size of a shard set's training split: "10M tokens"."""
    num_tokens = read_manifest(path).tokens("train")
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if num_tokens >= unit:
            return f"{num_tokens / unit:g}{letter} tokens"
    return f"{num_tokens:,} tokens"


def reading_cases(pools: list[Path], length: int) -> list[TurnTaker]:
    """Windows gathered in the loader's order, and its whole masked batches, from each pool; relative to the first."""
    names = [pool_name(path) for path in pools]
    num_windows = max(1, TOKENS_PER_BATCH // length)
    return [
        TurnTaker(
            name=f"data/{what}",
            shape=f"B{num_windows} L{length}",
            backend=name,
            num_tokens=BATCHES_PER_ROUND * num_windows * length,
            work=work(path, length, num_windows),
            ratio_to=names[0],
        )
        for what, work in (("gather", _gathering), ("batch", _batches))
        for path, name in zip(pools, names, strict=True)
    ]


def _gathering(path: Path, length: int, num_windows: int) -> Callable[[], None]:
    """Unmasked windows, the next ones with each call."""
    loader, first_samples = _loader(path, length), itertools.count(step=num_windows)
    windows = WindowDataset(open_shard_set(path, "train"), length)

    def work() -> None:
        for first in itertools.islice(first_samples, BATCHES_PER_ROUND):
            windows.gather(loader.window_numbers(np.arange(first, first + num_windows))[1])

    return work


def _batches(path: Path, length: int, num_windows: int) -> Callable[[], None]:
    """Batches as training takes them, the next ones with each call."""
    loader, first_samples = _loader(path, length), itertools.count(step=num_windows)

    def work() -> None:
        for first in itertools.islice(first_samples, BATCHES_PER_ROUND):
            loader.batch(first, num_windows)

    return work


def masking_cases(path: Path, length: int) -> list[TurnTaker]:
    """One batch of windows masked, by our masking and by megatron-core's dataset; relative to the latter."""
    num_windows = max(1, TOKENS_PER_BATCH // length)
    loader, samples = _loader(path, length), np.arange(num_windows)
    clean_ids = loader.batch(0, num_windows).clean_ids.numpy()
    special = loader.special
    masker = Masker.of(special, loader.vocab_size)
    vocabulary = tokenizers.Tokenizer.from_file(str(loader.tokenizer_path / "tokenizer.json")).get_vocab()
    theirs = MaskedSamples(
        clean_ids[:, 1:-1],
        {index: token for token, index in vocabulary.items()},
        {"cls": special.cls_id, "sep": special.sep_id, "mask": special.mask_id, "pad": special.pad_id},
    )
    works: dict[str, Callable[[], object]] = {
        MEGATRON: lambda: [theirs[index] for index in range(num_windows)],
        OURS: lambda: masker.mask(clean_ids, samples, loader.num_masked, RUN_SEED),
    }
    shape = f"B{num_windows} L{length}"
    return [
        TurnTaker("data/mask", shape, backend, num_windows * length, work, ratio_to=MEGATRON)
        for backend, work in works.items()
    ]


def opening_cases(path: Path) -> list[TurnTaker]:
    """From a path to a loader that is ready: opened never before, before, and before but in the disk's files only.

    Opened before means that every ``.bin`` was found good once and has not been touched since (`data.index`): its
    checksum is not computed again. The ``.idx`` files, manifest and tokenizer are checked in full every time.
    """
    _settle(path)
    works = {FIRST: partial(_forget, path), VERIFIED: partial(_remember, path), COLD: partial(_remember, path, True)}
    if not hasattr(os, "posix_fadvise"):
        del works[COLD]
    return [
        TurnTaker(
            name="data/open",
            shape=f"{pool_name(path)} L{LENGTHS[0]}",
            backend=backend,
            num_tokens=read_manifest(path).tokens("train"),
            work=partial(_loader, path, LENGTHS[0]),
            before=before,
            ratio_to=FIRST,
        )
        for backend, before in works.items()
    ]


def _loader(path: Path, length: int) -> Loader:
    return Loader(DataRecipe(shards=[ShardsRecipe(path=str(path))], sequence_length=length), RUN_SEED)


def _settle(path: Path) -> None:
    """Wait until the shards are old enough to be remembered."""
    newest = max(file.stat().st_ctime for file in path.iterdir())
    time.sleep(max(0.0, newest + SETTLED_SECONDS + 0.1 - time.time()))


def _forget(path: Path) -> None:
    (path / MEMORY).unlink(missing_ok=True)


def _remember(path: Path, drop_from_memory: bool = False) -> None:
    if not (path / MEMORY).exists():
        open_shard_set(path, "train")
    if drop_from_memory:
        for file in path.rglob("*"):
            if file.is_file() and file.suffix != ".bin":  # no .bin is read when a verified set is opened
                _drop_from_page_cache(file)


def _drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())  # only what is on the disk can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
