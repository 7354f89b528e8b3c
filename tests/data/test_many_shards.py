"""Thousands of shards and dozens of sets: few file descriptors, the same batches on any number of ranks."""

import json
import multiprocessing
import os
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shards import random_documents, write_shard_set

from benchmarks.data.made_up import write_made_up
from kd_megatron.data import index, mapped
from kd_megatron.data.loader import Loader
from kd_megatron.data.shards import open_shard_set
from kd_megatron.errors import DataError
from kd_megatron.recipe import DataRecipe
from kd_megatron.tensors import Batch

NUM_SHARDS, LENGTH = 2000, 32


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("many") / "set"
    return write_made_up(directory, NUM_SHARDS * 4 * LENGTH, vocab_size=300, num_shards=NUM_SHARDS)


def recipe(weights: dict[str, float], **keys: object) -> DataRecipe:
    shards = [{"path": path, "weight": weight} for path, weight in weights.items()]
    return DataRecipe.model_validate({"shards": shards, "sequence_length": LENGTH} | keys)


def as_ranks_read(data: DataRecipe, num_ranks: int, micro: int, num_samples: int) -> dict[str, torch.Tensor]:
    """The global batches of 32, put together from what each rank reads for itself in micro-batches."""
    loaders = [Loader(data, run_seed=1) for _ in range(num_ranks)]
    share = 32 // num_ranks
    batches = [
        loaders[rank].batch(step + rank * share + first, micro)
        for step in range(0, num_samples, 32)
        for rank in range(num_ranks)
        for first in range(0, share, micro)
    ]
    return joined(batches)


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    parts = {field.name: [getattr(batch, field.name) for batch in batches] for field in fields(Batch)}
    return {name: torch.cat(values) for name, values in parts.items() if values[0] is not None}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_two_thousand_shards_open_soon_and_hold_no_descriptors(many: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    begun = time.monotonic()
    loader = Loader(recipe({str(many): 1.0}), run_seed=1)
    batch = loader.batch(0, 512)
    assert time.monotonic() - begun < 60
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    _, windows = loader.window_numbers(np.arange(512))
    assert len({int(window) // (loader.num_windows // NUM_SHARDS) for window in windows}) > 400
    assert batch.clean_ids.shape == (512, LENGTH)


def test_any_number_of_ranks_reads_the_same_from_many_shards(many: Path) -> None:
    data = recipe({str(many): 1.0})
    whole = joined([Loader(data, run_seed=1).batch(0, 64)])
    for num_ranks, micro in ((2, 4), (4, 8)):
        assert equal(as_ranks_read(data, num_ranks, micro, 64), whole)


def test_forty_sets_by_weight_on_any_number_of_ranks(tmp_path: Path) -> None:
    weights = {
        str(write_shard_set(tmp_path / f"set{i}", {"train-00000": random_documents(i, 12)})): 1.0 + i % 7 / 10
        for i in range(40)
    }
    data = recipe(weights)
    loader = Loader(data, run_seed=1)
    period = loader._blend.period
    numbers, _ = loader.window_numbers(np.arange(period))
    shares = np.bincount(numbers) / period
    assert np.allclose(shares, np.array(list(weights.values())) / sum(weights.values()), atol=1e-9)
    whole = joined([loader.batch(0, 96)])
    for num_ranks, micro in ((2, 4), (4, 8)):
        assert equal(as_ranks_read(data, num_ranks, micro, 96), whole)


def open_again_and_again(directory: str, seed: int, rounds: int, answers: "multiprocessing.Queue[str]") -> None:
    """Open the set; now and then lose, tear or outdate what it remembers, as another job might."""
    rng = np.random.default_rng(seed)
    memory = Path(directory) / index.MEMORY
    index.SETTLED_SECONDS, mapped.TICK_SECONDS = -1.0, 0.0
    try:
        for _ in range(rounds):
            if rng.random() < 0.3:
                memory.unlink(missing_ok=True)
            tokens = [int(shard.tokens.astype(np.int64).sum()) for shard in open_shard_set(directory, "train").shards]
            if memory.exists():
                json.loads(memory.read_text() or "torn")
        answers.put(str(tokens))
    except FileNotFoundError:  # of memory.read_text: another process has just removed it
        answers.put(str(tokens))
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def test_many_processes_share_what_was_verified(shard_set: Path) -> None:
    """``.verified.json``, the one file that readers write: whole at any moment, right or ignored, nothing left over."""
    answers: multiprocessing.Queue[str] = multiprocessing.get_context("fork").Queue()
    processes = [
        multiprocessing.get_context("fork").Process(
            target=open_again_and_again, args=(str(shard_set), seed, 15, answers)
        )
        for seed in range(6)
    ]
    for process in processes:
        process.start()
    found = {answers.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(60)
    expected = [int(shard.tokens.astype(np.int64).sum()) for shard in open_shard_set(shard_set, "train").shards]
    assert found == {str(expected)}
    assert [path.name for path in shard_set.glob(f"{index.MEMORY}*")] in ([], [index.MEMORY])
    (shard_set / index.MEMORY).unlink(missing_ok=True)


def change(path: Path, how: str) -> None:
    if how == "vanishes":
        path.unlink()
    elif how == "is replaced by an equal copy":
        aside = path.with_suffix(".copy")
        aside.write_bytes(path.read_bytes())
        aside.replace(path)
    elif how == "is truncated":
        os.truncate(path, 0)
    elif how == "grows":
        os.truncate(path, path.stat().st_size + 2)
    else:
        with path.open("r+b") as file:
            file.write(b"\x07\x00")
        if how == "is written to, its time set back":
            os.utime(path, ns=(0, 0))


CHANGES = ("vanishes", "is replaced by an equal copy", "is truncated", "grows", "is written to")


@pytest.mark.parametrize("how", [*CHANGES, "is written to, its time set back"])
def test_a_shard_that_changes_under_a_loader_is_an_error_for_ever(tmp_path: Path, how: str) -> None:
    shards = {f"train-{i:05d}": random_documents(i, 30) for i in range(2)}
    loader = Loader(recipe({str(write_shard_set(tmp_path / "set", shards)): 1.0}), run_seed=0)
    loader.batch(0, 32)
    change(tmp_path / "set" / "train-00001.bin", how)
    time.sleep(mapped.JUST_NOW_SECONDS)
    for _ in range(2):
        with pytest.raises(DataError, match=r"train-00001\.bin .* while a run reads it"):
            loader.batch(0, 32)


def test_a_shard_that_is_only_touched_is_read_on(tmp_path: Path) -> None:
    directory = write_shard_set(tmp_path / "set", {"train-00000": random_documents(0, 30)})
    loader = Loader(recipe({str(directory): 1.0}), run_seed=0)
    expected = joined([loader.batch(0, 32)])
    path = directory / "train-00000.bin"
    for touch in (path.touch, lambda: path.chmod(0o600), lambda: os.link(path, directory / "link")):
        touch()
        assert equal(joined([loader.batch(0, 32)]), expected)
