"""Puts this directory on the import path, and holds that every test leaves the process as it found it."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Triton reads it when a kernel is decorated: every kernel of this process runs in its interpreter, on CPU tensors.
# Compiling for a GPU is tested in processes of their own.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, which every run calls, need not look through it each time."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # at the end of the process all of it is let go of


def _shared_by_all_tests() -> dict[str, Any]:
    """What decides how torch computes in the whole process: left changed, it would be another test that fails."""
    if "torch" not in sys.modules:
        return {}
    import torch

    return {
        "torch.nn.functional.linear": torch.nn.functional.linear,
        "number of threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients on": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
    }


@pytest.fixture(autouse=True)
def process_is_left_as_it_was() -> Iterator[None]:
    before = _shared_by_all_tests()
    yield
    after = _shared_by_all_tests()
    assert {name: after[name] for name in before} == before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a masked-language model of 2 layers x 32, with dropout, and its tokenizer."""
    from tiny_encoder import make_model

    return make_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def review_files(tmp_path: Path) -> tuple[Path, Path]:
    """train.tsv (96 rows) and dev.tsv (40 rows) of a task with two labels."""
    from tiny_encoder import sentences, write_tsv

    return write_tsv(tmp_path / "train.tsv", sentences(96, 1)), write_tsv(tmp_path / "dev.tsv", sentences(40, 2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Scores are compared to the last digit with processes of one thread: sums split over threads round differently."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
