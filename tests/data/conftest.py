"""Small shard sets for the tests of this directory."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from small_shards import random_documents, write_shard_set


@pytest.fixture(scope="session")
def documents() -> dict[str, list[list[int]]]:
    return {
        "train-00000": random_documents(0, 80),
        "train-00001": random_documents(1, 50),
        "train-00002": random_documents(2, 70),
        "valid-00000": random_documents(3, 30),
    }


@pytest.fixture(scope="session")
def streams(documents: dict[str, list[list[int]]]) -> dict[str, list[int]]:
    """The documents of each shard, end to end."""
    return {name: list(itertools.chain.from_iterable(texts)) for name, texts in documents.items()}


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory: pytest.TempPathFactory, documents: dict[str, list[list[int]]]) -> Path:
    """A shard set to read; tests that damage one make their own with ``make_shard_set``."""
    return write_shard_set(tmp_path_factory.mktemp("shards") / "first", documents)


@pytest.fixture(scope="session")
def other_shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second, int32 shard set with the same tokenizer and no validation split."""
    return write_shard_set(
        tmp_path_factory.mktemp("shards") / "second", {"train-00000": random_documents(9, 60)}, dtype="int32"
    )


@pytest.fixture
def make_shard_set(tmp_path: Path) -> Callable[..., Path]:
    return lambda name="set", **options: write_shard_set(
        tmp_path / name, options.pop("shards", {"train-00000": random_documents(4, 40)}), **options
    )
