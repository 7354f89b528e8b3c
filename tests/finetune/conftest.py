from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_encoder import make_model, sentences, write_tsv

from kd_megatron.ranks import ports


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a masked-language model of 2 layers x 32, with dropout, and its tokenizer."""
    return make_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def review_files(tmp_path: Path) -> tuple[Path, Path]:
    """train.tsv (96 rows) and dev.tsv (40 rows) of a task with two labels."""
    return write_tsv(tmp_path / "train.tsv", sentences(96, 1)), write_tsv(tmp_path / "dev.tsv", sentences(40, 2))


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Scores are compared to the last digit with processes of one thread: sums split over threads round differently."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
